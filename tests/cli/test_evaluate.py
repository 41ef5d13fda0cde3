"""`gradiend-hub evaluate`: a direction measured again, the report beside it, and its pull request."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from statistics import mode

import pytest
import torch
from huggingface_hub import HfApi, constants, hf_hub_download

from gradiend_hub import GradiendModel
from gradiend_hub.artifact.files import BASE_FILE, CONFIG_FILE, ENCODER_FILE, PROBES_FILE, REPORT_FILE, WEIGHTS_FILE
from gradiend_hub.base_model import load_base_model
from gradiend_hub.cards import write_card
from gradiend_hub.errors import ConfigError, DataError, HubPushError
from gradiend_hub.evaluation import Report
from gradiend_hub.evaluation.benchmarks import Benchmark, crows_pairs, side_effects
from gradiend_hub.hub import publish_folder, retry
from gradiend_hub.hub.propose import ReportProposal
from gradiend_hub.objectives import Batch, TextObjective
from tests.hub.conftest import TOLERATE_LFS_UPLOAD
from tests.hub_server import TOKENS, HubServer

from .conftest import Run, Trained

FILES = (CONFIG_FILE, WEIGHTS_FILE, ENCODER_FILE, BASE_FILE, REPORT_FILE, PROBES_FILE)
QUICK = ("--strengths", "-1,0,1", "--controls", "0")


@pytest.fixture
def copy(trained: Trained, tmp_path: Path) -> Path:
    """A copy of a published direction, beside which a report can be written."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in FILES:
        shutil.copyfile(trained.folder / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def data(masked_path: Path) -> str:
    return str(masked_path.parents[1] / "data" / "pronouns")


@pytest.fixture
def crows(tmp_path: Path) -> Path:
    pairs = ["The man was a king.,The woman was a king.,gender", "He was strong.,She was strong.,gender"]
    path = tmp_path / "crows.csv"
    path.write_text("\n".join(["sent_more,sent_less,bias_type", *pairs]))
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).is_file()}


def test_the_same_rows_give_the_claimed_figures_again(run: Run, copy: Path, data: str, crows: Path) -> None:
    before = content(copy)
    options = ("--data", data, "--split", "test[:16]", "--neutral", f"{data}:neutral", "--neutral-split", "neutral[:8]")
    more = ("--bench", f"crows-pairs={crows}", "--controls", "1", "--damage", f"tales={crows.parent / 'tales.jsonl'}")
    (crows.parent / "tales.jsonl").write_text('{"text": "The king was old and his garden was full of roses."}\n')
    result = run("evaluate", copy, *options, *QUICK, *more)
    assert result.exit_code == 0, result.stderr
    assert content(copy) == before
    claimed, found = Report.load(copy), Report.load(copy / "reports" / "pronouns-test-16.json")
    old, new = claimed.splits["test"], found.splits["test"]
    assert new.encoder and old.encoder and new.encoder.correlation == pytest.approx(old.encoder.correlation, abs=1e-4)
    for strength in (-1.0, 0.0, 1.0):
        assert new.at(strength).quality == pytest.approx(old.at(strength).quality, abs=1e-4)
        for row_class, of in new.at(strength).probability.items():
            assert of == pytest.approx(old.at(strength).probability[row_class], abs=1e-4)
    assert all(p.damage.keys() == {"neutral", "own", "tales"} for p in new.curve)
    assert "quality on the set 'tales' at +1" in result.stdout
    assert len(new.control) == 1
    assert (found.direction, found.direction_revision, found.base_model) == ("copy", None, "masked")
    assert str(copy.parent) not in (copy / "reports" / "pronouns-test-16.json").read_text()
    assert {"strength.png", "report.html"} <= {p.name for p in (copy / "reports" / "pronouns-test-16").iterdir()}
    line = re.search(r"P\(3SG\) on 3PL rows at \+1 +(\S+) +(\S+) +\S+ to", result.stdout)
    assert line and line[1] == line[2] == f"{new.at(1.0).probability['3PL']['3SG']:.3f}"
    assert re.findall(r"CrowS-Pairs stereotype_score at (\S+) +not measured +\d", result.stdout) == ["-1", "0", "+1"]


def test_batch_size_and_type_are_those_asked_for(
    run: Run, copy: Path, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    types: set[torch.dtype] = set()
    original = TextObjective.log_probs

    def recorded(self: TextObjective, model: torch.nn.Module, slots: Batch) -> torch.Tensor:
        sizes.append(len(slots.labels))
        types.add(next(model.parameters()).dtype)
        return original(self, model, slots)

    monkeypatch.setattr(TextObjective, "log_probs", recorded)
    options = ("--data", data, "--split", "test[:8]", *QUICK, "--out", tmp_path / "mine.json")
    result = run("evaluate", copy, *options, "--batch-size", "3", "--dtype", "bfloat16")
    assert result.exit_code == 0, result.stderr
    assert mode(sizes) == 3 and types == {torch.bfloat16}  # only the six completions are one batch


def test_benchmarks_are_run_on_the_edited_model_and_leave_it_as_it_was(copy: Path, crows: Path) -> None:
    model = GradiendModel.from_pretrained(copy, strength=0.5)
    before = model.receipt
    benchmark = Benchmark.parse(f"CrowS_Pairs={crows}")
    results = side_effects(model, model.tokenizer, [benchmark], (0.0, -8.0))
    assert model.strength == 0.5 and model.receipt == before
    assert [(r.name, r.strength, r.rows) for r in results] == [("CrowS-Pairs", 0.0, 2), ("CrowS-Pairs", -8.0, 2)]
    for result in results:
        model.set_strength(result.strength)
        likelihoods = [row["log_likelihood_more"] for row in benchmark.run(model, model.tokenizer).rows]
        merged = GradiendModel.from_pretrained(copy, strength=result.strength).merge_and_unload()
        plain = [row["log_likelihood_more"] for row in crows_pairs(merged, model.tokenizer, crows).rows]
        assert likelihoods == pytest.approx(plain, abs=1e-5)
        assert result.scores == crows_pairs(merged, model.tokenizer, crows).result.scores


def test_without_encoder_neutral_text_or_a_class_the_rest_is_measured(
    run: Run, copy: Path, data: str, tmp_path: Path
) -> None:
    (copy / ENCODER_FILE).unlink()
    (copy / REPORT_FILE).unlink()
    lines = Path(data, "test.jsonl").read_text().splitlines()
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join([line for line in lines if json.loads(line)["factual_class"] == "3PL"][:6]))
    out = tmp_path / "mine.json"
    result = run("evaluate", copy, "--data", rows, *QUICK, "--out", out)
    assert result.exit_code == 0, result.stderr
    assert "nothing is claimed" in result.stdout
    split = Report.load(out).splits["test"]
    assert split.encoder is None and split.at(1.0).quality is None and set(split.at(1.0).probability) == {"3PL"}
    assert [text.split(" ", 2)[:2] for text in split.missing] == [
        ["The", "direction"],
        ["No", "rows"],
        ["No", "neutral"],
        ["No", "break"],  # on either side, since own text breaks at no strength that was read
        ["No", "break"],
    ]
    text = " ".join(result.stdout.split())
    assert "missing No rows of 3SG" in text and "missing No neutral text" in text and "without its encoder" in text
    again = run("evaluate", copy, "--data", rows, *QUICK, "--out", out)
    assert again.exit_code == 1 and "replace it with --overwrite" in again.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--data", "{data}", "--bench", "crows-pear=x.csv"), "no benchmark 'crows-pear': did you mean crows-pairs?"),
        (("--data", "{data}", "--bench", "winobias=x"), "expected winobias=<pro-stereotypical file or Hub"),
        (("--data", "{data}", "--bench", "zzz=x"), "expected one of stereoset, crows-pairs"),
        (
            ("--data", "{data}", "--bench", "stereoset=dev.json"),
            "the file dev.json does not exist. Expected a dev.json or",
        ),
        (("--data", "{data}", "--bench", "crows-pairs=a/b/crows"), "the file a/b/crows does not exist"),
        (("--data", "{data}", "--bench", "seat={other}x"), "does not exist. Expected a JSON file"),
        (("--data", "{data}", "--bench", "crows-pairs={other}"), "column 'sent_more' is missing"),
        (("--data", "{empty}"), "empty.jsonl has no rows"),
        (("--data", "{data}", "--neutral", "{empty}"), "empty.jsonl has no rows"),
        (("--data", "{folder}/adapter_model.safetensors"), "is no data set. Expected a folder, a Hub id, or a file"),
        (("--data", "{folder}"), "cannot be read"),
        (("--data", "{data}", "--split", "dev"), "dev"),
        (("--data", "{data}:neutral"), "column ['masked', 'factual'"),
        (("--data", "{other}"), "unknown class 'plural'"),
        (("--data", "{broken}"), "cannot be read"),
        (("--data", "{data}", "--neutral", "{data}"), "expected a non-empty text in column 'text'"),
        (("--data", "{data}", "--damage", "chat.jsonl"), "expected NAME=DATA[:CONFIG], e.g. chat=prompts.jsonl"),
        (("--data", "{data}", "--damage", "own={data}:neutral"), "'own' cannot be the name of a damage set"),
        (("--data", "{data}", "--damage", "chat={empty}"), "empty.jsonl has no rows"),
        (("--data", "{data}", "--damage", "chat={data}"), "damage_datasets['chat']"),
        (("--data", "{data}", "--out", "{folder}/gradiend_report.json"), "not the published gradiend_report.json"),
        (("--data", "{data}", "--base", "{causal}"), "learned on a"),
        (("--data", "{data}", "--base", "/nowhere"), "could not be loaded"),
        (("--data", "{data}", "--create-pr", "no id"), "the repository id is not valid"),
    ],
)
def test_what_cannot_work_is_refused_before_the_measurement(
    run: Run, copy: Path, data: str, causal_path: Path, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    other, broken, empty = (tmp_path / f"{name}.jsonl" for name in ("other", "broken", "empty"))
    empty.touch()
    row = json.loads(Path(data, "test.jsonl").read_text().splitlines()[0])
    other.write_text(json.dumps({**row, "factual_class": "plural"}))
    broken.write_text('{"masked": \n')
    places = {"data": data, "folder": copy, "other": other, "broken": broken, "empty": empty, "causal": causal_path}
    result = run("evaluate", copy, *(option.format(**places) for option in options))
    assert result.exit_code == 1
    assert message in result.stderr
    assert "Measure" not in result.stdout and not (copy / "reports").exists()


@pytest.mark.parametrize(
    "text",
    [
        "crows-pairs={missing}",
        "crows-pairs={wrong}",
        "stereoset={wrong}",
        "winobias={missing},{missing}",
        "winogender={wrong},{wrong}",
        "seat={wrong}",
        "weat={missing}",
    ],
)
def test_data_of_another_kind_is_named(copy: Path, tmp_path: Path, text: str) -> None:
    wrong = tmp_path / "wrong.json"
    wrong.write_text('[{"a": 1}]')
    model = GradiendModel.from_pretrained(copy, strength=0.0)
    benchmark = Benchmark.parse(text.format(missing=tmp_path / "missing.csv", wrong=wrong))
    with pytest.raises(DataError, match=r"missing\.csv|wrong\.json"):
        benchmark.run(model, model.tokenizer)
    with pytest.raises(ConfigError, match="expected"):
        Benchmark.parse(text.partition("=")[0])


def test_a_relative_of_the_base_needs_consent(
    run: Run, copy: Path, data: str, masked_path: Path, tmp_path: Path
) -> None:
    base = load_base_model(masked_path)
    torch.manual_seed(0)
    for parameter in base.parameters():
        parameter.data += 0.05 * parameter.data.std() * torch.randn(parameter.shape)
    base.save_pretrained(tmp_path / "tuned")
    ignored = shutil.ignore_patterns("*.safetensors", "config.json")
    shutil.copytree(masked_path, tmp_path / "tuned", ignore=ignored, dirs_exist_ok=True)
    options = ("--data", data, "--split", "test[:4]", "--base", tmp_path / "tuned", *QUICK)
    refused = run("evaluate", copy, *options)
    assert refused.exit_code == 1 and "is a relative" in refused.stderr
    result = run("evaluate", copy, *options, "--allow-related")
    assert result.exit_code == 0, result.stderr
    assert Report.load(copy / "reports" / "tuned-pronouns-test-4.json").base_model == "tuned"


class TestPullRequest:
    """A report proposed to the owner of a direction."""

    pytestmark = TOLERATE_LFS_UPLOAD

    @pytest.fixture
    def published(self, copy: Path, repo_id: str, monkeypatch: pytest.MonkeyPatch) -> str:
        monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.0)
        write_card(copy)
        publish_folder(copy, repo_id)
        return repo_id

    @pytest.fixture
    def report(self, tmp_path: Path) -> Path:
        path = tmp_path / "mine.json"
        Report(["a", "b"], "base").save(path)
        return path

    def test_it_adds_the_report_and_nothing_else(
        self, run: Run, published: str, data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        api, out = HfApi(), Path("out", published.split("/")[1], "reports", "masked-pronouns-test-4.json")
        head, files = api.repo_info(published).sha, {*api.list_repo_files(published)}
        options = ("--data", data, "--split", "test[:4]", *QUICK, "--create-pr", published)
        base = Path(data).parents[1] / "base_models" / "masked"  # its path is not published
        result = run("evaluate", published, *options, "--base", base)
        assert result.exit_code == 0, result.stderr
        assert f"{constants.ENDPOINT}/{published}/discussions/1" in result.stdout
        assert api.repo_info(published).sha == head
        assert {*api.list_repo_files(published, revision="refs/pr/1")} == files | {
            "reports/masked-pronouns-test-4.json"
        }
        there = Path(hf_hub_download(published, "reports/masked-pronouns-test-4.json", revision="refs/pr/1"))
        assert there.read_bytes() == out.read_bytes()
        assert (Report.load(there).direction, Report.load(there).direction_revision) == (published, head)

    def test_a_stranger_may_propose_and_a_lost_answer_opens_one(
        self, published: str, report: Path, hub: HubServer
    ) -> None:
        hub.fault(action="lost_response", path="/commit/")
        proposal = ReportProposal(report, published, token=TOKENS.bob)
        proposal.check()
        assert proposal.send().pr_num == 1
        assert len([*HfApi().get_repo_discussions(published)]) == 1

    def test_a_name_that_is_taken_is_refused(self, published: str, report: Path) -> None:
        HfApi().upload_file(path_or_fileobj=b"{}", path_in_repo="reports/mine.json", repo_id=published)
        with pytest.raises(HubPushError, match=r"it has a reports/mine\.json already"):
            ReportProposal(report, published).check()

    def test_no_repository_or_no_direction_in_it(self, report: Path, repo_id: str, hub: HubServer) -> None:
        with pytest.raises(HubPushError, match="the repository does not exist"):
            ReportProposal(report, repo_id).check()
        assert not hub.log(path="/api/repos/create")
        HfApi().create_repo(repo_id)
        with pytest.raises(HubPushError, match="no direction in it") as failed:
            ReportProposal(report, repo_id).send()
        assert f"hf upload {repo_id} {report} reports/mine.json --create-pr" in str(failed.value)

    def test_offline_is_said_before_the_measurement(
        self, run: Run, copy: Path, data: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        result = run("evaluate", copy, "--data", data, "--create-pr", "alice/any")
        assert result.exit_code == 1 and "this process is offline" in result.stderr
        assert "Measure" not in result.stdout
