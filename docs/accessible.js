// What the theme leaves without a name, and code that scrolls but is not reached with the keyboard.
document.addEventListener("DOMContentLoaded", () => {
  document.querySelector("[data-md-component=search]")?.setAttribute("aria-label", "Search");
  document.querySelectorAll(".md-code__nav").forEach((nav, number) => nav.setAttribute("aria-label", `Code ${number + 1}`));
  document.querySelectorAll("pre > code, .md-typeset__table, .md-typeset table:not([class]), p:has(> img)").forEach((part) => {
    part.setAttribute("tabindex", "0");
  });
});
