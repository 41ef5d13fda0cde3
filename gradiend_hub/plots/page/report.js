"use strict";
// Texts of strangers get into the page as text nodes only.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
document.body.classList.add("live");

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// ---- what is behind a point
const tip = byId("tip");
let marked = null;

function show(point, x, y) {
  const sample = data.samples[Number(point.dataset.sample)];
  const parts = sample.text.split("[MASK]");
  const sentence = element("div");
  parts.forEach((part, i) => {
    if (i) sentence.append(element("b", sample.output));
    sentence.append(part);
  });
  tip.replaceChildren(sentence, element("div", `${sample.kind}, h = ${sample.h.toFixed(3)}`, "faint"));
  if (parts.length < 2) tip.append(element("div", sample.output));
  tip.style.display = "block";
  tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${y + 18 + tip.offsetHeight > innerHeight ? y - tip.offsetHeight - 10 : y + 18}px`;
  if (marked) marked.classList.remove("on");
  marked = point;
  point.classList.add("on");
}

function hide() {
  tip.style.display = "none";
  if (marked) marked.classList.remove("on");
  marked = null;
}

const cloud = byId("encodings");
if (cloud) {
  // a finger is wider than a point: the nearest one within reach is meant
  const centres = [...cloud.querySelectorAll("[data-sample]")].map((point) => {
    const box = point.getBBox();
    return { point, x: box.x + box.width / 2, y: box.y + box.height / 2 };
  });
  const look = (event) => {
    const box = cloud.getBoundingClientRect();
    const scale = box.width / cloud.viewBox.baseVal.width;
    const away = (at) => Math.hypot(box.left + at.x * scale - event.clientX, box.top + at.y * scale - event.clientY);
    const nearest = centres.reduce((best, at) => (away(at) < away(best) ? at : best));
    if (away(nearest) <= (event.pointerType === "mouse" ? 8 : 22)) show(nearest.point, event.clientX, event.clientY);
    else hide();
  };
  cloud.addEventListener("pointermove", look);
  cloud.addEventListener("pointerdown", look);
  cloud.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") hide(); // a finger that is lifted leaves the sentence to be read
  });
  // with the keyboard: one stop, and the arrows go from point to point by value
  const points = [...cloud.querySelectorAll("[data-sample]")].sort(
    (a, b) => data.samples[a.dataset.sample].h - data.samples[b.dataset.sample].h);
  cloud.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Escape") hide();
    if (!step || !points.length) return;
    event.preventDefault();
    const next = (points.indexOf(marked) + step + points.length) % points.length;
    points[next].scrollIntoView({ block: "nearest", inline: "nearest" });
    const box = points[next].getBoundingClientRect();
    show(points[next], box.left, box.top);
  });
  cloud.addEventListener("blur", hide);
}

// ---- the slider over measured strengths
const dial = byId("strength");
const figure = (value, digits) => (value === null ? "not measured" : value.toFixed(digits));
const per = (value) => (value === null ? "not measured" : `${(100 * value).toFixed(2)} %`);

function turn() {
  const i = Number(dial.value);
  const point = data.curve[i];
  byId("at").textContent = point.name;
  dial.setAttribute("aria-valuetext", `strength ${point.name}`);
  const rows = data.probabilities.map((of) => {
    const value = point[of.key];
    const row = element("tr");
    const cell = element("td");
    const bar = element("div", undefined, "bar");
    const fill = element("i", undefined, of.look);
    fill.style.width = `${100 * Math.min(1, Math.max(0, value ?? 0))}%`;
    bar.append(fill);
    cell.append(bar);
    row.append(element("th", of.name), element("td", figure(value, 3), "number"), cell);
    return row;
  });
  byId("chances").replaceChildren(...rows);
  byId("damage").textContent = `quality ${per(point.quality)} · KL ${figure(point.kl, 4)} nats · NLL ${figure(point.nll, 4)} nats`;
  byId("written").replaceChildren(...data.completions.map((completion) => {
    const row = element("tr");
    const asked = element("th", completion.image ? undefined : completion.text);
    if (completion.image) {
      const picture = element("img");
      Object.assign(picture, { src: completion.image, alt: completion.text, width: 64 });
      asked.append(picture);
    }
    row.append(asked, element("td", completion.at[point.name] ?? "not written at this strength"));
    return row;
  }));
  document.querySelectorAll("[data-strength]").forEach((row) =>
    row.classList.toggle("now", Number(row.dataset.strength) === i));
  const line = byId("here");
  line.setAttribute("x1", point.x);
  line.setAttribute("x2", point.x);
}

if (dial) {
  dial.addEventListener("input", turn);
  byId("curve").addEventListener("click", (event) => {
    const box = byId("curve").getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * byId("curve").viewBox.baseVal.width;
    const distances = data.curve.map((point) => Math.abs(point.x - x));
    dial.value = distances.indexOf(Math.min(...distances));
    turn();
  });
  turn();
}
