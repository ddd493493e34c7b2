"""Second moments: the numbers, the pass that can be stopped, what is stored, and what is shared."""

from __future__ import annotations

import copy
import random
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from oracles import metric_of
from torch import Tensor

from bluedit import SECOND_MOMENT, Statistics, World, read_corpus
from bluedit.editors.closed_form.priors import SecondMomentSettings
from bluedit.errors import NumericsError, StatisticsError
from bluedit.models import Batch, EditableModel, Row
from bluedit.statistics import Pass, SecondMoment, SharedStatistics, batching, moments, second_moments, store
from bluedit.statistics.convergence import is_due, measure
from bluedit.statistics.corpus import Corpus

LAYERS = (1, 2)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows, batches and blocks so small that few documents make many of them."""
    monkeypatch.setattr(batching, "WINDOW_DOCUMENTS", 32)
    monkeypatch.setattr(batching, "BATCH_TOKENS", 256)
    monkeypatch.setattr(batching, "BLOCK_TOKENS", 300)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many blocks each pass has been through, in the order of passes."""
    passes: list[int] = []
    run, add = Pass.run, Pass._add
    monkeypatch.setattr(Pass, "run", lambda self, *a, **k: (passes.append(0), run(self, *a, **k))[1])

    def count(self: Pass, block: batching.Block) -> None:
        passes[-1] += 1
        add(self, block)

    monkeypatch.setattr(Pass, "_add", count)
    return passes


@pytest.fixture
def corpus(corpus_file: Path) -> Corpus:
    return read_corpus(f"text:{corpus_file}")


def one_by_one(model: EditableModel, texts: list[str], layer: int, length: int) -> tuple[Tensor, int]:
    """The definition, in float64: every document by itself, the whole model run."""
    twin = EditableModel(copy.deepcopy(model.model).double(), model.tokenizer)
    total, tokens = torch.zeros(model.structure.d_ff, model.structure.d_ff, dtype=torch.float64), 0
    for text in texts:
        seen: list[Tensor] = []
        ids = twin.text.prompt(text)[:length]
        with torch.no_grad(), twin.hooked(layer, "key", seen.append):
            twin.forward(Batch.of([Row(ids)], "cpu"))
        total += seen[0][0].T @ seen[0][0]
        tokens += len(ids)
    return total / tokens, tokens


# -- numbers -------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_blocks")
def test_the_moments_are_those_of_one_document_at_a_time(tiny_models: EditableModel, corpus_texts: list[str]) -> None:
    texts = [*corpus_texts[:20], "", "  ", "x", " ".join(corpus_texts[20:30])]
    found = second_moments(tiny_models, texts, LAYERS, max_length=40)
    for layer in LAYERS:
        expected_FF, tokens = one_by_one(tiny_models, [text for text in texts if text.strip()], layer, 40)
        assert found[layer].tokens == tokens
        torch.testing.assert_close(found[layer].matrix_FF, expected_FF, rtol=1e-4, atol=1e-5 * expected_FF.abs().max().item())


def test_the_pass_stops_at_the_highest_layer(tiny_gpt2: EditableModel, corpus_texts: list[str]) -> None:
    def fail(_: Tensor) -> None:
        pytest.fail("a layer ran whose keys nobody asked for")

    with tiny_gpt2.hooked(2, "mlp", fail), tiny_gpt2.hooked(3, "attention", fail):
        assert set(second_moments(tiny_gpt2, corpus_texts[:5], [2, 0])) == {0, 2}


def test_half_precision_comes_close(tiny_gpt2: EditableModel, corpus_texts: list[str]) -> None:
    half = EditableModel(copy.deepcopy(tiny_gpt2.model).bfloat16(), tiny_gpt2.tokenizer)
    ours, theirs = (second_moments(model, corpus_texts[:40], [1])[1].matrix_FF for model in (half, tiny_gpt2))
    assert ours.dtype == torch.float64
    error = (ours - theirs).norm() / theirs.norm()
    assert 1e-6 < error < 0.02


def test_keys_that_are_not_finite_are_refused(own_gpt2: EditableModel, corpus_texts: list[str]) -> None:
    with torch.no_grad():
        own_gpt2.model.transformer.h[1].mlp.c_fc.bias[3] = float("nan")
    with pytest.raises(NumericsError, match="keys of layer 1 are not finite"):
        second_moments(own_gpt2, corpus_texts[:5], LAYERS)


def test_documents_are_cut_off_where_the_model_ends(tiny_gpt2: EditableModel, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("Ada was born in Paris. " * 100, encoding="utf-8")
    corpus = read_corpus(f"text:{path}")
    for length, tokens in ((None, 96), (1000, 96), (10, 10)):
        statistics = Statistics(corpus, folder=tmp_path / "folder", max_length=length)
        assert statistics.moments(tiny_gpt2, [0])[0].tokens == tokens
    assert len(list((tmp_path / "folder").iterdir())) == 2


def test_no_text_is_refused(tiny_gpt2: EditableModel) -> None:
    with pytest.raises(StatisticsError, match="holds no text"):
        second_moments(tiny_gpt2, ["", " \t"], [1])


def test_batches_hold_every_row_once_and_little_padding() -> None:
    generator = random.Random(0)
    lengths = [min(1024, int(generator.lognormvariate(5, 1.2)) + 1) for _ in range(1024)]
    found = list(batching.blocks([Row((0,) * length) for length in lengths]))
    rows = [len(row.ids) for block in found for batch in block.batches for row, _ in batch]
    assert sorted(rows) == sorted(lengths)
    assert sum(even for block in found for batch in block.batches for _, even in batch) == 512
    for block in found:
        for batch in block.batches:
            size = len(batch) * len(batch[0][0].ids)
            padding = size - sum(len(row.ids) for row, _ in batch)
            assert size <= batching.BATCH_TOKENS
            assert padding <= max(batching.PADDING_FRACTION * size, batching.PADDING_TOKENS)
        assert block.tokens <= batching.BLOCK_KEYS
    assert all(block.tokens >= batching.BLOCK_TOKENS for block in found[:-1])
    padded, tokens = sum(block.padded for block in found), sum(block.tokens for block in found)
    assert tokens == sum(lengths)
    assert 0 < padded / tokens - 1 < 0.03


def test_windows_depend_on_the_documents_alone() -> None:
    texts = [" " if number % 7 == 0 else "x" * (number % 3000) for number in range(1, 4000)]
    whole = list(batching.windows(texts))
    assert [text for window in whole for text in window] == [text for text in texts if text.strip()]
    assert max(map(len, whole)) <= batching.WINDOW_DOCUMENTS
    assert list(batching.windows(texts, len(whole[0]))) == whole[1:]


# -- convergence ---------------------------------------------------------------------------------------------------


def test_the_measure_is_the_relative_error_of_romes_change() -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.randn(60, 12, generator=generator, dtype=torch.float64) for _ in range(2))
    keys = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    halves = [half.T @ half / 60 for half in (one, other)]
    directions = []
    for half in halves:
        inverse = torch.linalg.inv(0.99 * half + 0.01 * half.trace() / 12 * torch.eye(12, dtype=torch.float64))
        directions.append([inverse @ key / (key @ inverse @ key) for key in keys.T])
    expected = sum((a - b).norm() / (a + b).norm() for a, b in zip(*directions, strict=True)) / 5
    moment, change = measure(*halves, keys)
    assert change == pytest.approx(expected.item(), rel=1e-9)
    assert moment == pytest.approx(((halves[0] - halves[1]).norm() / (halves[0] + halves[1]).norm()).item(), rel=1e-9)
    assert measure(halves[0], halves[0], keys) == (0, 0)
    assert measure(halves[0], 0 * halves[0], keys)[1] is None


def test_it_is_measured_twice_per_doubling() -> None:
    assert [count for count in range(1, 50) if is_due(count)] == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48]


def test_the_estimate_is_about_the_error_that_there_is(tiny_gpt2: EditableModel, world: World) -> None:
    """A few documents against many more that they are not among."""
    texts = world.corpus(3400)
    running = Pass(tiny_gpt2, [1], max_length=96, measured=True)
    running.run(texts[:400])
    point, few = running.cursor.curve[1][-1], running.moments()[1]
    many = second_moments(tiny_gpt2, texts[400:], [1])[1]
    probes_FP = running._probes[1].T.double()
    moment, change = measure(few.matrix_FF, many.matrix_FF, probes_FP)
    assert point.documents == 400
    assert point.moment == pytest.approx(2 * moment, rel=0.5)
    assert point.change == pytest.approx(2 * change, rel=0.5)


@pytest.mark.usefixtures("small_blocks")
def test_measuring_changes_no_bit_and_the_curve_falls(tiny_gpt2: EditableModel, corpus: Corpus, tmp_path: Path) -> None:
    plain = Statistics(corpus, folder=tmp_path / "plain").moments(tiny_gpt2, LAYERS)
    measured = Statistics(corpus, folder=tmp_path / "measured", measured=True).moments(tiny_gpt2, LAYERS)
    for layer in LAYERS:
        assert torch.equal(plain[layer].matrix_FF, measured[layer].matrix_FF)
        assert plain[layer].curve == ()
        curve = measured[layer].curve
        assert [point.documents for point in curve] == [32, 64, 96, 128, 192, 256, 300]
        assert curve[-1].change < curve[2].change < curve[0].change
        assert curve[-1].moment < curve[0].moment
        assert curve[-1].tokens == measured[layer].tokens
    stored = Statistics(corpus, folder=tmp_path / "measured").moments(tiny_gpt2, LAYERS)
    assert all(stored[layer].curve == measured[layer].curve for layer in LAYERS)


@pytest.mark.usefixtures("small_blocks")
def test_it_stops_by_itself_with_the_moments_over_so_many_documents(
    tiny_gpt2: EditableModel, corpus: Corpus, tmp_path: Path, computed: list[int]
) -> None:
    curves = Statistics(corpus, folder=tmp_path / "all", measured=True).moments(tiny_gpt2, LAYERS)
    tolerance = max(moment.curve[3].change for moment in curves.values())
    statistics = Statistics(corpus, folder=tmp_path / "until", until=tolerance)
    collection = statistics.collect(tiny_gpt2, LAYERS)
    assert collection.samples == 128
    assert computed[1] < computed[0]
    limited = Statistics(corpus, samples=128, folder=tmp_path / "limited").moments(tiny_gpt2, LAYERS)
    again = statistics.collect(tiny_gpt2, LAYERS)
    found = Statistics(corpus, samples=128, folder=tmp_path / "until").collect(tiny_gpt2, LAYERS)
    assert len(computed) == 3
    assert again.samples == found.samples == 128
    for layer in LAYERS:
        for other in (limited[layer], again.moments[layer], found.moments[layer]):
            assert torch.equal(collection.moments[layer].matrix_FF, other.matrix_FF)
    never = Statistics(corpus, folder=tmp_path / "until", until=1e-6)
    assert never.collect(tiny_gpt2, LAYERS).samples is None
    assert torch.equal(never.moments(tiny_gpt2, [1])[1].matrix_FF, curves[1].matrix_FF)


# -- stopping and going on -----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("options", [{}, {"measured": True}, {"until": 0.12}], ids=["plain", "measured", "until"])
@pytest.mark.parametrize("count", [1, 2, 7, 12])
def test_stopped_anywhere_it_ends_with_the_same_bits(
    tiny_gpt2: EditableModel,
    corpus: Corpus,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    count: int,
) -> None:
    whole = Statistics(corpus, folder=tmp_path / "whole", **options).collect(tiny_gpt2, LAYERS)
    add, calls = Pass._add, iter(range(1, 1000))

    def stop(self: Pass, block: batching.Block) -> None:
        if next(calls) == count:
            raise KeyboardInterrupt
        add(self, block)

    statistics = Statistics(corpus, folder=tmp_path / "stopped", save_every=0, **options)
    with monkeypatch.context() as stopping:
        stopping.setattr(Pass, "_add", stop)
        with pytest.raises(KeyboardInterrupt):
            statistics.moments(tiny_gpt2, LAYERS)
    partial = list((tmp_path / "stopped").glob("*"))
    assert [path.name.partition(".")[2] for path in partial] == (["partial.safetensors"] if count > 1 else [])
    reported: list[int] = []
    resumed = statistics.collect(tiny_gpt2, LAYERS, lambda done, _: reported.append(done))
    assert bool(resumed.resumed) == (count > 1)
    assert (resumed.tokens_now < resumed.tokens) == (count > 1)
    assert (resumed.samples, resumed.tokens, resumed.padded) == (whole.samples, whole.tokens, whole.padded)
    assert sum(reported) == (whole.samples or 300)
    for layer in LAYERS:
        one, other = whole.moments[layer], resumed.moments[layer]
        assert torch.equal(one.matrix_FF, other.matrix_FF)
        assert (one.tokens, one.documents, one.curve) == (other.tokens, other.documents, other.curve)
    assert not list((tmp_path / "stopped").glob("*.partial.*"))


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize(("place", "at", "kept"), [("forward", 5, True), ("forward", 1, False), ("middle of a sum", 7, False)])
def test_an_interruption_keeps_what_is_whole(
    tiny_gpt2: EditableModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, at: int, kept: bool
) -> None:
    monkeypatch.setattr(batching, "BATCH_TOKENS", 128)  # several batches a block
    expected = Statistics(corpus, folder=tmp_path / "whole", measured=True).moments(tiny_gpt2, LAYERS)
    statistics = Statistics(corpus, folder=tmp_path, measured=True)  # saves once a minute
    owner, name = (Pass, "_forward") if place == "forward" else (torch, "isfinite")
    original, calls = getattr(owner, name), iter(range(1, 1000))

    def stop(*arguments: Any) -> Any:
        if next(calls) == at:
            original(*arguments)
            raise KeyboardInterrupt
        return original(*arguments)

    with monkeypatch.context() as stopping:
        stopping.setattr(owner, name, stop)
        with pytest.raises(KeyboardInterrupt):
            statistics.moments(tiny_gpt2, LAYERS)
    collection = statistics.collect(tiny_gpt2, LAYERS)
    assert bool(collection.resumed) == kept
    for layer in LAYERS:
        assert torch.equal(collection.moments[layer].matrix_FF, expected[layer].matrix_FF)
        assert collection.moments[layer].curve == expected[layer].curve


@pytest.mark.usefixtures("small_blocks")
def test_a_damaged_unfinished_pass_is_refused(tiny_gpt2: EditableModel, corpus: Corpus, tmp_path: Path) -> None:
    statistics = Statistics(corpus, folder=tmp_path, save_every=0)

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        statistics.moments(tiny_gpt2, LAYERS, stop)
    (partial,) = tmp_path.glob("*.partial.safetensors")
    partial.write_bytes(partial.read_bytes()[:-9])
    with pytest.raises(StatisticsError, match=r"cannot be read: .* remove that file to start again"):
        statistics.moments(tiny_gpt2, LAYERS)
    partial.unlink()
    assert set(statistics.moments(tiny_gpt2, LAYERS)) == set(LAYERS)


@pytest.mark.parametrize("stored", [1, 2])
def test_a_kill_while_moments_are_stored_leaves_no_pass_behind(
    tiny_gpt2: EditableModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: int
) -> None:
    """The next call ends with the same bits, and removes the pass that they are from."""
    whole = Statistics(corpus, folder=tmp_path / "whole").moments(tiny_gpt2, LAYERS)
    statistics, plain, calls = Statistics(corpus, folder=tmp_path / "killed", save_every=0), store.write_tensors, [0]

    def kill(path: Path, *arguments: Any, **options: Any) -> str:
        digest = plain(path, *arguments, **options)
        if ".partial" not in path.name:
            calls[0] += 1
            if calls[0] == stored:
                raise KeyboardInterrupt
        return digest

    with monkeypatch.context() as killing:
        killing.setattr(store, "write_tensors", kill)
        with pytest.raises(KeyboardInterrupt):
            statistics.moments(tiny_gpt2, LAYERS)
    assert list((tmp_path / "killed").glob("*.partial.safetensors"))
    again = statistics.moments(tiny_gpt2, LAYERS)
    assert all(torch.equal(again[layer].matrix_FF, whole[layer].matrix_FF) for layer in LAYERS)
    assert not list((tmp_path / "killed").glob("*.partial.safetensors"))


# -- the store -----------------------------------------------------------------------------------------------------


def test_whatever_determines_a_moment_is_in_its_key(
    tiny_gpt2: EditableModel, other_gpt2: EditableModel, corpus: Corpus, tmp_path: Path, computed: list[int]
) -> None:
    statistics = Statistics(corpus, samples=20, folder=tmp_path)
    first = statistics.moments(tiny_gpt2, [1])[1]
    half = EditableModel(copy.deepcopy(tiny_gpt2.model).bfloat16(), tiny_gpt2.tokenizer)
    statistics.moments(tiny_gpt2, [1])
    assert len(computed) == 1
    for model, other in (
        (other_gpt2, statistics),
        (half, statistics),
        (tiny_gpt2, replace(statistics, samples=19)),
        (tiny_gpt2, replace(statistics, max_length=5)),
        (tiny_gpt2, replace(statistics, corpus=read_corpus("world:1"))),
    ):
        before = len(computed)
        assert not torch.equal(other.moments(model, [1])[1].matrix_FF, first.matrix_FF)
        assert len(computed) == before + 1
    assert len({path.name for path in tmp_path.iterdir()}) == 6


def test_the_inverse_is_kept_beside_the_moment(
    tiny_gpt2: EditableModel, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statistics = Statistics(corpus, folder=tmp_path)
    moment = statistics.moments(tiny_gpt2, [1])[1]
    direct = metric_of(moment.matrix_FF, 7.0, shrinkage=0.1)
    for settings in (SecondMomentSettings(lambda_=7.0, shrinkage=0.1), SecondMomentSettings(lambda_=3.0, shrinkage=0.1)):
        first = SECOND_MOMENT.inverse(moment, settings)
        monkeypatch.setattr(moments, "invert", lambda *_: pytest.fail("inverted again"))
        again = SECOND_MOMENT.inverse(statistics.moments(tiny_gpt2, [1])[1], settings)
        assert torch.equal(first.matrix_FF, again.matrix_FF)
        assert first.matrix_FF.stride() == again.matrix_FF.stride()
        assert first.condition == again.condition == direct.condition
        if settings.lambda_ == 7:
            assert torch.equal(first.matrix_FF, direct.matrix_FF)
    monkeypatch.undo()
    (kept,) = tmp_path.glob("*.inverse-0.1.safetensors")
    SECOND_MOMENT.inverse(moment, SecondMomentSettings(shrinkage=0.2))
    assert len(list(tmp_path.glob("*.inverse-*"))) == 2
    kept.write_bytes(kept.read_bytes()[:100])
    with pytest.raises(StatisticsError, match="remove it and run again"):
        moment.inverse(0.1)
    assert SecondMoment(moment.matrix_FF, 1).inverse(0.1)[1] == direct.condition


# -- corpora -------------------------------------------------------------------------------------------------------


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_kinds_of_files_hold_the_same_documents(tmp_path: Path) -> None:
    text = write(tmp_path / "a.txt", "Ada 東京.\n\nBob.\n")
    lines = write(tmp_path / "a.jsonl", '{"text": "Ada 東京."}\n\n{"id": 1, "text": "Bob."}\n{"text": " "}')
    for name in (f"text:{text}", f"jsonl:{lines}"):
        assert list(read_corpus(name).documents()) == ["Ada 東京.", "Bob."]
        assert list(read_corpus(name).documents(1)) == ["Ada 東京."]
    assert read_corpus(f"text:{text}").identity != read_corpus(f"jsonl:{lines}").identity
    assert list(read_corpus("world:3").documents(2)) == World(3).corpus(4000)[:2]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text:{}", None, "does not exist"),
        ("text:{}", "", "is empty"),
        ("text:{}", b"caf\xe9\n", "is not UTF-8 text"),
        ("jsonl:{}", '{"text": "a"}\n{"text": "b"\n', "line 2: not JSON"),
        ("jsonl:{}", '{"text": "a"}\n\n{"body": "b"}\n', "line 3: no text"),
        ("jsonl:{}", '["a"]\n', "line 1: no text"),
        ("jsonl:{}", '{"text": 3}\n', "line 1: no text"),
        ("txet:{}", "a", "Did you mean 'text'"),
        ("world:x", "a", "has no seed"),
        ("hub:", "a", "names no data set"),
        ("stats:{}", "a", "cannot be read"),
        ("wikipedia", "a", "unknown kind of corpus 'wikipedia'"),
    ],
)
def test_a_corpus_that_cannot_be_used_says_why(tmp_path: Path, name: str, content: str | bytes | None, message: str) -> None:
    path = tmp_path / "corpus"
    if content is not None:
        write(path, content)
    with pytest.raises(StatisticsError, match=message):
        list(read_corpus(name.format(path)).documents())


def test_a_data_set_of_the_hub_is_streamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> Iterator[dict[str, Any]]:
        asked.append((arguments, options))
        yield {"id": 1, "text": "Ada."}
        yield {"id": 2, "text": ""}
        yield {"id": 3, "text": "Bob."}
        pytest.fail("more was read than was asked for")

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    corpus = read_corpus("hub:wikimedia/wikipedia:20231101.en@abc")
    assert (corpus.size, asked) == (None, [])
    assert list(corpus.documents(2)) == ["Ada.", "Bob."]
    assert asked == [
        (("wikimedia/wikipedia", "20231101.en"), {"split": "train", "streaming": True, "revision": "abc"}),
    ]
    names = ["hub:a", "hub:a:b", "hub:a@c", "hub:a:b@c"]
    assert len({read_corpus(name).identity for name in names}) == 4


def test_a_data_set_without_texts_or_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = types.SimpleNamespace(load_dataset=lambda *_, **__: [{"body": "x"}])
    monkeypatch.setitem(sys.modules, "datasets", rows)
    with pytest.raises(StatisticsError, match="no column of texts named 'text'; it has body"):
        list(read_corpus("hub:a").documents())
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(StatisticsError, match=r"pip install 'bluedit\[hub\]'"):
        list(read_corpus("hub:a").documents())


def test_a_folder_is_read_by_the_real_package(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder / "train.jsonl", '{"text": "Ada."}\n{"text": "Bob."}\n')
    corpus = read_corpus(f"hub:{folder}")
    assert list(corpus.documents()) == ["Ada.", "Bob."]
    write(folder / "train.jsonl", '{"text": "Ada."}\n')
    assert read_corpus(f"hub:{folder}").identity != corpus.identity


# -- sharing -------------------------------------------------------------------------------------------------------


@pytest.fixture
def exported(tiny_gpt2: EditableModel, corpus: Corpus, tmp_path: Path) -> Path:
    statistics = Statistics(corpus, samples=50, folder=tmp_path / "there", measured=True)
    path = tmp_path / "shared.safetensors"
    statistics.export(path, tiny_gpt2, statistics.collect(tiny_gpt2, LAYERS), "tiny")
    return path


def test_exported_moments_serve_elsewhere(
    tiny_gpt2: EditableModel, corpus: Corpus, exported: Path, tmp_path: Path, computed: list[int]
) -> None:
    shared = SharedStatistics.open(exported)
    assert (shared.origin.model, shared.origin.samples, shared.origin.documents) == ("tiny", 50, 50)
    expected = Statistics(corpus, samples=50, folder=tmp_path / "there").moments(tiny_gpt2, LAYERS)
    Statistics(folder=tmp_path / "here").adopt(tiny_gpt2, shared)
    stored = Statistics(corpus, samples=50, folder=tmp_path / "here").moments(tiny_gpt2, LAYERS)
    direct = Statistics(read_corpus(f"stats:{exported}"), folder=tmp_path / "nowhere")
    for found in (stored, direct.moments(tiny_gpt2, LAYERS)):
        for layer in LAYERS:
            assert torch.equal(found[layer].matrix_FF, expected[layer].matrix_FF)
            assert found[layer].tokens == expected[layer].tokens
            assert found[layer].curve == expected[layer].curve != ()
    assert not computed
    direct.moments(tiny_gpt2, [1])[1].inverse(0.1)
    assert [path.name.partition(".")[2] for path in (tmp_path / "nowhere").iterdir()] == ["inverse-0.1.safetensors"]
    with pytest.raises(StatisticsError, match="holds no second moment of layer 3, only of 1, 2"):
        direct.moments(tiny_gpt2, [3])
    with pytest.raises(StatisticsError, match="not text, so it cannot give others"):
        read_corpus(f"stats:{exported}").documents()


def test_moments_of_another_model_are_refused(other_gpt2: EditableModel, exported: Path, tmp_path: Path) -> None:
    with pytest.raises(StatisticsError, match=r"belongs to another model \(tiny\): .* layer 1"):
        Statistics(folder=tmp_path / "here").adopt(other_gpt2, SharedStatistics.open(exported))
    assert not (tmp_path / "here").exists()


@pytest.mark.parametrize("damage", ["cut off", "changed", "of another kind"])
def test_a_damaged_file_is_refused(
    tiny_gpt2: EditableModel, exported: Path, damage: str, make_patch: Callable[..., Any]
) -> None:
    content = exported.read_bytes()
    if damage == "cut off":
        exported.write_bytes(content[:-100])
    elif damage == "changed":
        exported.write_bytes(content[:-100] + bytes([content[-100] ^ 1]) + content[-99:])
    else:
        exported.unlink()
        make_patch(tiny_gpt2).save(exported)
    with pytest.raises(StatisticsError, match=r"copy it again|holds no exported statistics"):
        Statistics(read_corpus(f"stats:{exported}")).moments(tiny_gpt2, LAYERS)
