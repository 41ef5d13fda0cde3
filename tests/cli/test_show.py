"""`info`, `apply`, `merge` and `push` on a direction that `train` has made."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from huggingface_hub import HfApi
from peft import PeftModel
from rich.console import Console
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM, AutoTokenizer

from gradiend_hub import GradiendConfig, GradiendModel
from gradiend_hub.artifact.direction import Direction
from gradiend_hub.evaluation import Report
from gradiend_hub.evaluation.shift import shifts
from gradiend_hub_cli.apply import guesses_tables
from gradiend_hub_cli.tables import curve_table, strength_text
from tests.hub_server import HubServer

from .conftest import Run, Trained

SENTENCE = "The players ran home because [MASK] were hungry."


def words(text: str) -> str:
    """Text without the layout of a table."""
    return " ".join(text.split())


# ------------------------------------------------------------------------------------------------------------------ info


def test_info_shows_what_the_files_say(run: Run, trained: Trained) -> None:
    result = run("info", trained.folder)
    shown = words(result.stdout)
    assert result.exit_code == 0
    for expected in (
        "strength > 0 3SG:",
        "strength < 0 3PL: they",
        "masked_lm",
        "stored: all",
        "Measured on the test split",
    ):
        assert expected in shown
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_info_says_what_was_not_learned_and_what_each_sign_does(run: Run, trained: Trained, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(trained.folder, copy)
    report = Report.load(copy)
    for converged in (None, True, False):
        report.converged, report.verdict = converged, "" if converged else "The correlation is 0.04."
        report.save(copy)
        shown = words(run("info", copy).stdout)
        found = "not learned the training did not find this feature. The correlation is 0.04." in shown
        assert found is (converged is False)
        for shift in shifts(report.splits["test"], ("3SG", "3PL")):
            assert shift.claim in shown
        facts = json.loads(run("info", copy, "--json").stdout)
        assert (facts["learned"], facts["verdict"]) == (converged, report.verdict)


def test_info_as_json_holds_the_same_facts(run: Run, trained: Trained) -> None:
    facts = json.loads(run("info", trained.folder, "--json").stdout)
    assert facts["config"]["feature_classes"] == ["3SG", "3PL"]
    assert facts["measured"] == "test" and facts["commit"] is None
    assert facts["entries"] == facts["weights"] > 1_000_000
    assert facts["sizes"]["adapter_model.safetensors"] == (trained.folder / "adapter_model.safetensors").stat().st_size
    assert {point["strength"] for point in facts["report"]["curve"]} >= {-1, 0, 1}


def test_info_needs_no_torch(trained: Trained, tmp_path: Path) -> None:
    """Nor does it where others have measured the direction, whose reports it looks at."""
    folder = shutil.copytree(trained.folder, tmp_path / "here", ignore=shutil.ignore_patterns("checkpoint-*"))
    (folder / "reports").mkdir()
    shutil.copy(folder / "gradiend_report.json", folder / "reports" / "other.json")
    script = f"""
import sys
from typer.testing import CliRunner
from gradiend_hub_cli import app
result = CliRunner().invoke(app, ["info", {str(folder)!r}, "--json"])
assert result.exit_code == 0 and "reports/other.json" in result.stdout, result.output
assert not {{"torch", "transformers", "peft", "datasets"}} & sys.modules.keys()
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_info_of_an_unmeasured_direction_says_so(run: Run, causal_direction: Path) -> None:
    shown = words(run("info", causal_direction).stdout)
    assert "encoder not measured" in shown and "What each strength changes: not measured." in shown
    assert json.loads(run("info", causal_direction, "--json").stdout)["report"] is None


def test_info_of_another_adapter_is_refused(run: Run, trained: Trained, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.folder, tmp_path / "lora", ignore=shutil.ignore_patterns("checkpoint-*"))
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 8}))
    result = run("info", folder)
    assert result.exit_code == 1 and "LORA" in result.stderr


# ----------------------------------------------------------------------------------------------------------------- apply


def test_apply_shows_the_guesses_that_the_model_makes(run: Run, trained: Trained) -> None:
    result = run("apply", trained.folder, SENTENCE, "--strengths", "-2, 0,2", "--top", "3")
    assert result.exit_code == 0, result.stderr
    for heading in ("strength -2", "strength 0", "strength +2"):
        assert heading in result.stdout
    base = AutoModelForMaskedLM.from_pretrained(trained.recipe["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(trained.recipe["model"])
    ids = tokenizer(SENTENCE, return_tensors="pt")
    slot = ids.input_ids[0].tolist().index(tokenizer.mask_token_id)
    with torch.inference_mode():
        best = base(**ids).logits[0, slot].softmax(-1).topk(3)
    rows = [line for line in result.stdout.splitlines() if line.count(" % ") == 3]
    assert len(rows) == 3
    for row, token, p in zip(rows, best.indices, best.values, strict=True):
        assert f"{100 * float(p):.1f} % {tokenizer.decode([token])}" in words(row)


def test_apply_shows_the_probability_of_a_class_with_a_word_of_several_tokens(
    run: Run, trained: Trained, tmp_path: Path
) -> None:
    folder = shutil.copytree(trained.folder, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoint-*"))
    config = json.loads((folder / "adapter_config.json").read_text())
    config["fillers"]["3PL"] = ["they", "themselfs"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    result = run("apply", folder, SENTENCE, "--strengths", "0", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)["texts"][0]["at"][0]["classes"]
    base = AutoModelForMaskedLM.from_pretrained(trained.recipe["model"], dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(trained.recipe["model"])
    for name, words in config["fillers"].items():
        total = 0.0
        for word in words:
            tokens = tokenizer.convert_tokens_to_ids(tokenizer.tokenize(word))
            inputs = tokenizer(SENTENCE.replace("[MASK]", "[MASK]" * len(tokens)), return_tensors="pt")
            slots = (inputs.input_ids[0] == tokenizer.mask_token_id).nonzero().flatten()
            with torch.inference_mode():
                at = base(**inputs).logits[0, slots].softmax(-1)
            total += float(at[range(len(tokens)), tokens].prod())
        assert found[name] == pytest.approx(total, rel=1e-4)
    assert len(tokenizer.tokenize("themselfs")) == 3
    shown = run("apply", folder, SENTENCE, "--strengths", "0").stdout
    for name, probability in found.items():
        assert f"{probability:.3f} P({name})" in shown


def test_apply_completes_with_a_causal_model(run: Run, causal_direction: Path) -> None:
    result = run("apply", causal_direction, "The king went to the", "The men said that [MASK] came", "--tokens", "4")
    assert result.exit_code == 0, result.stderr
    plain, with_slot = result.stdout.split("The men said that [MASK] came")
    assert "goes on with" in plain and " % " not in plain
    assert "goes on with" in with_slot and with_slot.count(" % ") == 15


@pytest.mark.parametrize("strengths", ["nan", "0,inf", "one", "", "1,,2"])
def test_a_strength_that_is_no_number_is_refused(run: Run, trained: Trained, strengths: str) -> None:
    result = run("apply", trained.folder, SENTENCE, "--strengths", strengths)
    assert result.exit_code == 2 and "finite number" in words(result.stderr)


def test_a_text_without_a_slot_is_refused(run: Run, trained: Trained) -> None:
    result = run("apply", trained.folder, "They ran.")
    assert result.exit_code == 1 and "exactly one [MASK]" in result.stderr and result.stdout == ""


def test_nothing_to_complete_is_refused(run: Run, causal_direction: Path) -> None:
    result = run("apply", causal_direction, "  ")
    assert result.exit_code == 1 and "nothing to complete" in result.stderr and result.stdout == ""


def test_a_slot_at_the_start_of_a_text_has_guesses_and_no_completion(run: Run, causal_direction: Path) -> None:
    result = run("apply", causal_direction, "[MASK] ran.", "--strengths", "0", "--top", "2")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count(" % ") == 2 and "goes on with" not in result.stdout


def test_a_foreign_base_model_is_refused(run: Run, trained: Trained, causal_path: Path) -> None:
    result = run("apply", trained.folder, SENTENCE, "--base", causal_path)
    assert result.exit_code == 1 and "was learned on a bert model" in result.stderr


def test_many_strengths_go_into_several_tables() -> None:
    at_strength = {float(s): [("they", 0.5), ("[he]", 0.25)] for s in range(6)}
    console = Console(width=80, record=True, markup=False)
    tables = guesses_tables(at_strength, {"they": "cyan", "[he]": ""}.__getitem__, width=console.width)
    assert [len(table.columns) for table in tables] == [4, 2]
    with console.capture() as capture:
        console.print(*tables)
    text = capture.get()
    assert text.count("50.0 % they") == 6 and text.count("25.0 % [he]") == 6


# ----------------------------------------------------------------------------------------------------------------- merge


def test_merge_writes_a_plain_checkpoint_and_its_receipt(run: Run, trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    result = run("merge", trained.folder, out, "--strength", "-1")
    assert result.exit_code == 0, result.stderr
    edited = GradiendModel.from_pretrained(trained.folder, strength=-1.0)
    shown = words(result.stdout)
    assert f"{edited.receipt.entries:,} weights in {edited.receipt.tensors} tensors" in shown
    assert f"{edited.receipt.relative_norm:.3g}" in shown and "at strength -1" in shown
    inputs = AutoTokenizer.from_pretrained(out)(SENTENCE, return_tensors="pt")
    plain = AutoModelForMaskedLM.from_pretrained(out)
    with torch.inference_mode():
        assert torch.equal(plain(**inputs).logits, edited(**inputs).logits)
    card = (out / "README.md").read_text()
    assert "rewritten towards 3PL" in card
    assert f"| weights | {edited.receipt.entries:,} in {edited.receipt.tensors} tensors |" in card


@pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload:DeprecationWarning")
def test_merge_can_push_what_it_wrote(run: Run, trained: Trained, hub: HubServer, repo_id: str, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    result = run("merge", trained.folder, out, "--strength", "-1", "--push-to", repo_id, "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["pushed"]["repo_id"] == repo_id
    here, there = (AutoModelForMaskedLM.from_pretrained(place).state_dict() for place in (out, repo_id))
    assert all(torch.equal(here[name], there[name]) for name in here)
    refused = run("merge", trained.folder, tmp_path / "other", "--strength", "-1", "--push-to", "no/such/id")
    assert refused.exit_code == 1 and "Nothing was merged" in words(refused.stderr)
    assert not (tmp_path / "other").exists()


def test_merge_in_half_precision_says_what_is_lost(run: Run, trained: Trained, tmp_path: Path) -> None:
    result = run("merge", trained.folder, tmp_path / "merged", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.stderr
    assert "torch.bfloat16" in words(result.stdout) and "lost to dtype 0.00%" not in words(result.stdout)
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "merged").dtype == torch.bfloat16


def test_merge_keeps_off_folders_in_use(run: Run, trained: Trained, tmp_path: Path) -> None:
    out = tmp_path / "used"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    refused = run("merge", trained.folder, out)
    assert refused.exit_code == 1 and "is not empty (notes.txt)" in refused.stderr
    assert list(out.iterdir()) == [out / "notes.txt"]
    assert run("merge", trained.folder, out, "--overwrite").exit_code == 0
    assert (out / "notes.txt").read_text() == "mine" and (out / "model.safetensors").is_file()

    assert run("merge", trained.folder, out / "notes.txt").exit_code == 1
    onto_itself = run("merge", trained.folder, trained.folder, "--overwrite")
    assert onto_itself.exit_code == 1 and "the direction itself" in onto_itself.stderr
    onto_base = run("merge", trained.folder, trained.recipe["model"], "--overwrite")
    assert onto_base.exit_code == 1 and "the base model itself" in onto_base.stderr


@pytest.mark.filterwarnings("ignore:At strength .* times as large as the weights")
def test_strengths_outside_of_the_safe_band_are_named(run: Run, trained: Trained, tmp_path: Path) -> None:
    low, high = GradiendConfig.from_pretrained(trained.folder).safe_band or (0.0, 0.0)
    far, inside = high + 100, high / 2
    applied = " ".join(run("apply", trained.folder, SENTENCE, "--strengths", f"{inside},{far}").stdout.split())
    assert f"{strength_text(far)}: outside of the safe band, {strength_text(low)} to {strength_text(high)}" in applied
    merged = " ".join(run("merge", trained.folder, tmp_path / "far", "--strength", str(far)).stdout.split())
    assert f"beware {strength_text(far)}: outside of the safe band" in merged
    assert "safe band" not in run("apply", trained.folder, SENTENCE, "--strengths", f"{inside}").stdout
    assert "safe band" not in run("merge", trained.folder, tmp_path / "near", "--strength", str(inside)).stdout


def test_merge_of_files_gives_the_same_model(run: Run, trained: Trained, tmp_path: Path) -> None:
    found = json.loads(
        run("merge", trained.folder, tmp_path / "live", "--strength", "-1", "--dtype", "bfloat16", "--json").stdout
    )
    result = run("merge", trained.folder, tmp_path / "files", "--strength", "-1", "--stream", "--json")
    assert result.exit_code == 0, result.stderr
    streamed = json.loads(result.stdout)
    names = ("model_class", "dtype", "strength", "warning")
    assert [streamed[name] for name in names] == [found[name] for name in names]
    assert streamed["receipt"]["entries"] == found["receipt"]["entries"]
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("live", "files"))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    assert "rewritten towards 3PL" in (tmp_path / "files" / "README.md").read_text()
    inputs = AutoTokenizer.from_pretrained(tmp_path / "files")(SENTENCE, return_tensors="pt")
    assert inputs["input_ids"].shape[1] > 2
    for extra in (("--dtype", "bfloat16"), ("--strength", "0")):
        refused = run("merge", trained.folder, tmp_path / "no", "--stream", *extra)
        assert refused.exit_code == 1 and not (tmp_path / "no").exists()
    onto_base = run("merge", trained.folder, trained.recipe["model"], "--overwrite", "--stream")
    assert onto_base.exit_code == 1 and "the base model itself" in onto_base.stderr


# ---------------------------------------------------------------------------------------------------------------- export


def test_export_writes_what_plain_peft_reads(run: Run, trained: Trained, tmp_path: Path) -> None:
    result = run("export", trained.folder, tmp_path / "lora", "--format", "lora", "--rank", "4", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    folders = [Path(folder) for folder in found["folders"]]
    assert [folder.name for folder in folders] == ["plus", "minus"]  # the autoencoder's decoder has a bias
    assert found["rank"] == 4 and 0.5 < found["energy"] < 1 and found["left_out"]
    name = "bert.encoder.layer.1.output.dense"
    config = GradiendConfig.from_pretrained(trained.folder)
    part = Direction.load(trained.folder, config).parameters[f"{name}.weight"]
    for folder, strength in zip(folders, (1.0, -1.0), strict=True):
        u, s, v = torch.linalg.svd(part.dense(part.delta(*config.coefficients(strength))), full_matrices=False)
        base = AutoModelForMaskedLM.from_pretrained(trained.recipe["model"], dtype=torch.float32)
        layer = PeftModel.from_pretrained(base, folder).base_model.model.get_submodule(name)
        torch.testing.assert_close(layer.get_delta_weight("default"), (u[:, :4] * s[:4]) @ v[:4], atol=1e-6, rtol=1e-3)
    shown = words(run("export", trained.folder, tmp_path / "again").stdout)
    assert (
        "plus and minus are strength ±1" in shown
        and "rank 8" in shown
        and "--max-lora-rank 8" in shown
        and "of ‖Δ‖²" in shown
    )
    for extra in (("--rank", "0"), ("--rank", "100000"), ("--strength", "0"), ("--base", "nobody/nothing")):
        refused = run("export", trained.folder, tmp_path / "no", *extra)
        assert refused.exit_code == 1 and not (tmp_path / "no").exists(), extra
    assert run("export", trained.folder, tmp_path / "no", "--format", "onnx").exit_code == 2
    refused = run("export", trained.folder, tmp_path / "no", "--format", "gguf-lora")
    assert refused.exit_code == 1 and "no GGUF form of a direction on bert" in refused.stderr.replace("\n", " ")
    refused = run("export", trained.folder, tmp_path / "no", "--format", "shira")  # dense
    assert refused.exit_code == 1 and "--format lora" in refused.stderr and not (tmp_path / "no").exists()
    assert run("export", trained.folder, tmp_path / "lora").exit_code == 1  # not empty


def test_export_of_a_task_vector(run: Run, trained: Trained, tmp_path: Path) -> None:
    result = run("export", trained.folder, tmp_path / "tv", "--format", "task-vector", "--strength", "-2", "--json")
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert Path(found["file"]) == tmp_path / "tv" / "task_vector.safetensors" and found["odd"] is False
    config = GradiendConfig.from_pretrained(trained.folder)
    expected = {
        name: part.dense(part.delta(*config.coefficients(-2.0)))
        for name, part in Direction.load(trained.folder, config).parameters.items()
    }
    written = load_file(found["file"])
    assert written.keys() == expected.keys() and found["tensors"] == len(written)
    assert all(torch.equal(written[name], expected[name]) for name in expected)
    assert found["norm"] == pytest.approx(float(torch.cat([t.flatten() for t in written.values()]).double().norm()))
    shown = words(run("export", trained.folder, tmp_path / "again", "--format", "task-vector").stdout)
    assert "scale 1 is strength" in shown and "not odd in the strength" in shown
    for extra in (("--rank", "2"), ("--strength", "0"), ("--strength", "1e300"), ("--base", "nobody/nothing")):
        refused = run("export", trained.folder, tmp_path / "no", "--format", "task-vector", *extra)
        assert refused.exit_code == 1 and not (tmp_path / "no").exists(), extra


def test_merge_at_strength_zero_is_refused(run: Run, trained: Trained, tmp_path: Path) -> None:
    refused = run("merge", trained.folder, tmp_path / "merged", "--strength", "0")
    assert refused.exit_code == 1 and "nothing to merge" in refused.stderr
    assert not (tmp_path / "merged").exists()


def test_merge_at_a_strength_that_is_no_number_is_refused(run: Run, trained: Trained, tmp_path: Path) -> None:
    assert run("merge", trained.folder, tmp_path / "merged", "--strength", "nan").exit_code == 2
    assert not (tmp_path / "merged").exists()


# ------------------------------------------------------------------------------------------------------------------ push


def test_a_pushed_direction_is_found_by_the_other_commands(
    run: Run, trained: Trained, hub: HubServer, repo_id: str
) -> None:
    result = run("push", trained.folder, repo_id, "--private", "--message", "First")
    assert result.exit_code == 0, result.stderr
    assert hub.url in result.stdout and HfApi().repo_info(repo_id).private
    assert HfApi().list_repo_commits(repo_id)[0].title == "First"
    facts = json.loads(run("info", repo_id, "--json").stdout)
    assert facts["commit"] == HfApi().repo_info(repo_id).sha

    branch = run("push", trained.folder, repo_id, "--revision", "tried")
    assert branch.exit_code == 0 and run("info", repo_id, "--revision", "tried").exit_code == 0
    (trained.folder / "README.md").touch()
    request = run("push", trained.folder, f"{repo_id}-2", "--create-pr")
    assert request.exit_code == 0 and "/discussions/1" in request.stdout


def test_a_push_without_permission_says_how_to_repeat_it(run: Run, trained: Trained, hub: HubServer) -> None:
    result = run("push", trained.folder, "bob/of-bob")
    assert result.exit_code == 1
    assert f"gradiend-hub push {trained.folder} bob/of-bob" in result.stderr


def test_a_folder_that_is_no_direction_is_not_pushed(run: Run, tmp_path: Path, hub: HubServer, repo_id: str) -> None:
    result = run("push", tmp_path, repo_id)
    assert result.exit_code == 1 and "not a saved direction" in result.stderr
    assert not HfApi().repo_exists(repo_id)


def test_a_repository_that_is_no_direction_is_refused(run: Run, hub: HubServer, repo_id: str) -> None:
    HfApi().create_repo(repo_id)
    HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id=repo_id)
    result = run("apply", repo_id, SENTENCE)
    assert result.exit_code == 1 and "There is no direction in" in result.stderr


def test_a_curve_on_rows_of_one_class_names_what_is_missing(trained: Trained) -> None:
    report = Report.load(trained.folder)
    split = report.splits["test"]
    points = [replace(p, probability={"3SG": p.probability["3SG"]}) for p in split.curve]
    table = curve_table(replace(split, curve=points), ["3SG", "3PL"], [1.0])
    cells = [next(iter(column.cells)) for column in table.columns]
    assert cells[1:3] == ["not measured", f"{split.at(1.0).probability['3SG']['3PL']:.3f}"]


def test_strengths_are_written_shortly() -> None:
    found = [strength_text(s) for s in (0.0, -1.0, 0.5, -1.09454, 1.31, 12.0, -0.198, 0.0123)]
    assert found == ["0", "-1", "+0.5", "-1.09", "+1.31", "+12", "-0.2", "+0.012"]


def test_the_recommended_strength_is_among_those_of_apply(run: Run, trained: Trained, tmp_path: Path) -> None:
    folder = shutil.copytree(trained.folder, tmp_path / "debias", ignore=shutil.ignore_patterns("checkpoint-*"))
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"strength": -0.25}))
    shown = run("apply", folder, SENTENCE).stdout
    assert [*re.findall(r"strength (\S+)", shown)] == ["-1", "-0.25", "0", "+1"]


def test_a_saved_copy_has_what_its_card_shows(trained: Trained, tmp_path: Path) -> None:
    GradiendModel.from_pretrained(trained.folder).save_pretrained(tmp_path / "copy")
    linked = re.findall(r"\]\((assets/.*?\.png)\)", (tmp_path / "copy" / "README.md").read_text())
    assert linked
    for name in (*linked, "report.html"):
        assert (tmp_path / "copy" / name).read_bytes() == (trained.folder / name).read_bytes()


def test_merge_measures_before_and_after_when_asked(run: Run, trained: Trained, tmp_path: Path) -> None:
    rows = trained.recipe["test_dataset"]["path"]
    result = run("merge", trained.folder, tmp_path / "merged", "--strength", "0.7", "--measure", rows, "--json")
    assert result.exit_code == 0, result.stderr
    card = (tmp_path / "merged" / "README.md").read_text()
    assert "Measured when it was merged" in card and "| +0.70 | 0." in card and "| 0.00 | 0." in card
    unmeasured = run("merge", trained.folder, tmp_path / "plain", "--strength", "0.7")
    assert unmeasured.exit_code == 0
    assert "were not measured at strength +0.70" in (tmp_path / "plain" / "README.md").read_text()
    for extra in (("--stream", "--measure", rows), ("--neutral", rows)):
        assert run("merge", trained.folder, tmp_path / "no", "--strength", "0.7", *extra).exit_code == 1
    assert not (tmp_path / "no").exists()
