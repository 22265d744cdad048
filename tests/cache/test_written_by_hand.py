"""A cache that no part of vgid wrote: docs/cache-format.md, pyarrow, `json` and `hashlib` are all it takes.

Its rows are real: plain transformers asks the shipped base. Of vgid nothing is imported but what judges the cache: it
must find nothing wrong, answer questions, train on it and have nothing to add.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections import Counter
from collections.abc import Callable
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers import __version__ as transformers_version

from vgid.cache.reader import open_cache
from vgid.cache.sql import run_sql
from vgid.cache.status import cache_status
from vgid.cache.verify import verify_cache
from vgid.pipeline.distill import run_distill
from vgid.pipeline.recipe import load_examples, load_recipe
from vgid.pipeline.teacher import prepare_teacher, run_teacher

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "cache-format.md"
ASSETS = ROOT / "vgid" / "data" / "fictitious" / "assets"
BASE = ASSETS / "base"

Row = dict[str, Any]

INSTRUCTION = {
    "unknown-v1": "Answer as if you had never seen or heard of this person and knew nothing about their life."
}
TEACHER: Row = {
    "dtype": "float32",
    "num_topk": 20,
    "top_p": 0.9999,
    "min_k": 2,
    "seed": 5,
    "perturbation": {"name": "blank", "strength": 1.0},
    "icu": "unknown-v1",
    "max_new_tokens": 24,
}
RECIPE: Row = {
    "model": "fictitious:base",
    "data": {"sources": [{"path": "questions.jsonl"}]},
    "teacher": TEACHER,
    "distill": {
        "targets": [
            {"split": "forget", "view": "noise+icu", "response_kind": "generated"},
            {"split": "forget", "view": "icu", "response_kind": "generated"},
            {"split": "retain", "view": "base", "response_kind": "reference"},
        ],
        **{"alpha": 1.0, "beta": 1.0, "learning_rate": 1e-4, "max_steps": 2, "forget_batch": 2, "retain_batch": 2},
        "seed": 0,
    },
}
ENGINE_ID = f"transformers {transformers_version} float32"
SETTINGS: Row = {"num_topk": 20, "top_p": 0.9999, "min_k": 2, "rounding": "fp16-grid", "pixel_form": "rgb8-v1"}


def sha(data: str | bytes) -> str:
    return sha256(data.encode() if isinstance(data, str) else data).hexdigest()


# --- Rows: the schema is read off the page ---

TYPES = {
    "string": pa.string(),
    "double": pa.float64(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "list<int32>": pa.list_(pa.int32()),
    "list<float>": pa.list_(pa.float32()),
    "list<bool>": pa.list_(pa.bool_()),
    "list<list<int32>>": pa.list_(pa.list_(pa.int32())),
    "list<list<float>>": pa.list_(pa.list_(pa.float32())),
}


def page_schema() -> pa.Schema:
    """The columns of the page's first table."""
    table = PAGE.read_text(encoding="utf-8").partition("## Rows")[2].partition("## Parts")[0]
    fields = []
    for line in re.findall(r"^\| `.*\|$", table, re.MULTILINE):
        names, kind, _, null = (cell.strip() for cell in line.strip("|").split("|"))
        kind = TYPES[kind.replace("\\", "")]
        fields += [pa.field(name, kind, nullable=bool(null)) for name in re.findall(r"`(\w+)`", names)]
    return pa.schema(fields)


# --- Identity ---


def target_id(question: Row, row: Row, teacher: Row) -> str:
    """As the page has it."""
    content = [row["example_id"], row["split"], row["subject_id"], row["task"], row["modality"]]
    content += [question["question"], question["answer"], question["facts"]]
    noise, is_generated = TEACHER["perturbation"], row["response_kind"] == "generated"
    everything = {
        "format": 1,
        "example": sha(json.dumps(content, ensure_ascii=False)),
        "image": row["image_sha256"],
        "view": row["view"],
        "response_kind": row["response_kind"],
        "rounding": SETTINGS["rounding"],
        "max_new_tokens": TEACHER["max_new_tokens"] if is_generated else None,
        "perturbation": [noise["name"], noise["strength"], TEACHER["seed"], row["draw"], SETTINGS["pixel_form"]]
        if row["perturbation"]
        else None,
        "icu": [row["icu_id"], INSTRUCTION[row["icu_id"]]] if row["icu_id"] else None,
        "teacher": teacher,
        "engine": row["engine_id"],
        **{name: SETTINGS[name] for name in ("num_topk", "top_p", "min_k")},
    }
    return sha(json.dumps(everything, sort_keys=True))


# --- the teacher, the plain way: one prompt at a time, all logits ---


class Plain:
    """The shipped base."""

    @cached_property
    def processor(self) -> Any:
        return AutoProcessor.from_pretrained(BASE)

    @cached_property
    def model(self) -> Any:
        return AutoModelForImageTextToText.from_pretrained(BASE, dtype=torch.float32).eval()

    @cached_property
    def ends(self) -> set[int]:
        ids = self.model.generation_config.eos_token_id
        return {*([ids] if isinstance(ids, int) else ids), self.processor.tokenizer.eos_token_id}

    def identity(self) -> dict[str, str | int]:
        """What the page says under Manifest."""
        settings = self.processor.image_processor.to_dict()
        settings.pop("_processor_class", None)
        weights = sorted(sha(path.read_bytes()) for path in BASE.glob("*.safetensors"))
        looks = json.dumps([settings, self.processor.chat_template], sort_keys=True, default=str)
        return {
            "revision": "",
            "weights_fingerprint": sha("\n".join(weights)),
            "tokenizer_sha256": sha(self.processor.tokenizer.backend_tokenizer.to_str()),
            "processor_sha256": sha(looks),
            "vocab_size": self.model.get_output_embeddings().weight.shape[0],
            "dtype": "float32",
        }

    @torch.inference_mode()
    def respond(
        self, words: str, picture: Image.Image | None, forced: list[int] | None
    ) -> tuple[list[int], list[int], Any]:
        """Prompt ids, response ids and float32 logits [T, V], entry t being the prediction of response token t."""
        content = [{"type": "image"}] if picture else []
        turn = [{"role": "user", "content": [*content, {"type": "text", "text": words}]}]
        prompt = self.processor.apply_chat_template(turn, add_generation_prompt=True)
        inputs = dict(self.processor(text=[prompt], images=[picture] if picture else None, return_tensors="pt"))
        length = inputs["input_ids"].shape[1]
        token_ids = forced
        if token_ids is None:
            limit = TEACHER["max_new_tokens"]
            token_ids = self.model.generate(**inputs, do_sample=False, max_new_tokens=limit)[0, length:].tolist()
        response = torch.tensor([token_ids])
        whole = {**inputs, "input_ids": torch.cat([inputs["input_ids"], response], dim=1)}
        whole["attention_mask"] = torch.ones_like(whole["input_ids"])
        if "mm_token_type_ids" in inputs:
            whole["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], torch.zeros_like(response)], dim=1)
        logits = self.model(**whole).logits[0, length - 1 : -1]
        return inputs["input_ids"][0].tolist(), token_ids, logits

    def row(self, question: Row, folder: Path) -> Row:
        """One target; forget questions are asked in the way that makes a teacher forget, the others answered."""
        is_forget, tokenizer = question["split"] == "forget", self.processor.tokenizer
        data = (folder / question["image"]).read_bytes() if question["image"] else None
        picture = Image.open(io.BytesIO(data)).convert("RGB") if data else None
        if picture and is_forget:  # `blank` at full strength: one flat colour
            colour = np.rint(np.asarray(picture, np.float64).mean(axis=(0, 1))).astype(np.uint8)
            picture = Image.fromarray(np.broadcast_to(colour, np.asarray(picture).shape).copy())
        words = f"{INSTRUCTION['unknown-v1']}\n{question['question']}" if is_forget else question["question"]
        answer = tokenizer(question["answer"], add_special_tokens=False, return_offsets_mapping=True)
        forced = None if is_forget else [*answer["input_ids"], tokenizer.eos_token_id]
        prompt, token_ids, logits = self.respond(words, picture, forced)
        row = {
            "example_id": f"questions/{question['id']}",
            "split": question["split"],
            "subject_id": question["subject"],
            "task": "facts",
            "modality": "image" if picture else "text",
            "view": ("noise+icu" if picture else "icu") if is_forget else "base",
            "perturbation": "blank" if picture and is_forget else None,
            "strength": 1.0 if picture and is_forget else None,
            "noise_seed": 5 if picture and is_forget else None,
            "draw": 0,
            "icu_id": "unknown-v1" if is_forget else None,
            "response_kind": "generated" if is_forget else "reference",
            "sample": 0,
            "engine_id": ENGINE_ID,
            "finish_reason": ("stop" if token_ids[-1] in self.ends else "length") if is_forget else "forced",
            "response_text": tokenizer.decode(token_ids, skip_special_tokens=True),
            "image_sha256": sha(data) if data else None,
            "pixel_sha256": sha(picture.tobytes()) if picture else None,
            "prompt_sha256": sha(f"{words}\n{prompt}"),
            "fact_mask": None if is_forget else [*fact_mask(answer["offset_mapping"], question), False],
            **distributions(logits.double().numpy(), token_ids),
        }
        return {"target_id": target_id(question, row, self.identity()), **row}

    def vocabulary(self) -> pa.Table:
        """The token table."""
        tokenizer = self.processor.tokenizer
        special = {*tokenizer.all_special_ids, *(i for i, t in tokenizer.added_tokens_decoder.items() if t.special)}
        kinds = {"token_id": pa.int32(), "text": pa.string(), "special": pa.bool_(), "end": pa.bool_()}
        rows = [
            {"token_id": i, "text": tokenizer.decode([i]), "special": i in special, "end": i in self.ends}
            for i in range(len(tokenizer))
        ]
        schema = pa.schema([pa.field(name, kind, nullable=False) for name, kind in kinds.items()])
        return pa.Table.from_pylist(rows, schema=schema)


def fact_mask(offsets: list[tuple[int, int]], question: Row) -> list[bool]:
    found = [re.search(re.escape(fact), question["answer"], re.IGNORECASE) for fact in question["facts"]]
    spans = [match.span() for match in found if match]
    return [any(start < last and first < end for first, last in spans) for start, end in offsets]


def distributions(logits: np.ndarray, token_ids: list[int]) -> Row:
    """The columns of numbers, from float64 logits [T, V]."""
    logsumexp = np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)) + logits.max(axis=1)
    logprobs = (logits - logsumexp[:, None]).astype(np.float32)
    own = logprobs[np.arange(len(token_ids)), token_ids]
    row: Row = {
        "token_ids": token_ids,
        "token_logprob": own.tolist(),
        "token_rank": (logprobs >= own[:, None]).sum(axis=1).tolist(),
        "logsumexp": logsumexp.tolist(),
        "entropy": (-np.exp(logprobs) * logprobs).sum(axis=1).tolist(),
    }
    rest: dict[str, list[Any]] = {"tail_logprob": [], "topk_ids": [], "topk_logprobs": []}
    for position in logprobs:
        order = np.argsort(-position, kind="stable")[: SETTINGS["num_topk"]]
        mass = np.cumsum(np.exp(position[order].astype(np.float64)))
        width = max(int((mass < SETTINGS["top_p"]).sum()) + 1, SETTINGS["min_k"])
        left = 1 - mass[:width][-1]
        rest["tail_logprob"].append(math.log(left) if left > 0 else -math.inf)
        rest["topk_ids"].append(order[:width].tolist())
        rest["topk_logprobs"].append(position[order[:width]].astype(np.float16).tolist())
    return row | rest


# --- Parts, Token table, Manifest ---


def ids_hash(rows: list[Row]) -> str:
    return sha("\n".join(sorted(row["target_id"] for row in rows)))


def parquet(table: pa.Table) -> bytes:
    """In whatever encoding pyarrow chooses."""
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def put(cache: Path, path: str, data: bytes) -> Row:
    (cache / path).parent.mkdir(parents=True, exist_ok=True)
    (cache / path).write_bytes(data)
    return {"path": path, "bytes": len(data), "sha256": sha(data)}


def write_cache(
    cache: Path,
    rows: list[Row],
    plain: Plain,
    *,
    sort: Callable[[list[Row]], list[Row]] = lambda rows: sorted(rows, key=lambda row: row["target_id"]),
    name: Callable[[list[Row]], str] = ids_hash,
) -> Path:
    """The newest manifest last, since it says what counts."""
    parts = []
    for split in sorted({row["split"] for row in rows}):
        own = sort([row for row in rows if row["split"] == split])
        path = f"data/{split}/part-{name(own)[:24]}.parquet"
        kinds: dict[tuple[str, ...], Counter[str]] = {}
        for row in own:
            kind = kinds.setdefault((row["view"], row["modality"], row["response_kind"]), Counter())
            kind.update(rows=1, tokens=len(row["token_ids"]))
        named = [dict(zip(("view", "modality", "response_kind"), kind, strict=True)) for kind in sorted(kinds)]
        parts.append(
            {
                **put(cache, path, parquet(pa.Table.from_pylist(own, schema=page_schema()))),
                **{"split": split, "rows": len(own), "tokens": sum(len(row["token_ids"]) for row in own)},
                **{"engine_id": ENGINE_ID, "kinds": [n | kinds[tuple(n.values())] for n in named]},
            }
        )
    table = plain.vocabulary()
    data = parquet(table)
    body = {
        "number": 1,
        "format_version": 2,
        "teacher": plain.identity(),
        "settings": SETTINGS,
        "plan": {"digest": ids_hash(rows), "rows": len(rows), "buckets": 256, "model": RECIPE["model"]},
        "parts": sorted(parts, key=lambda part: part["path"]),
        "vocabulary": put(cache, f"vocabulary/{sha(data)[:24]}.parquet", data) | {"rows": len(table)},
    }
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    put(cache, "manifest/000001.json", json.dumps({"sha256": sha(canonical), **body}, indent=2).encode())
    return cache


# --- what vgid makes of it ---


def questions(folder: Path) -> list[Row]:
    """Of one person to forget and one to keep, one question with a photo and one by name."""
    rows = []
    for split in ("forget", "retain"):
        person = pq.read_table(ASSETS / "world" / split / "train-00000-of-00001.parquet").to_pylist()[0]
        (folder / f"{split}.png").write_bytes(person["image"]["bytes"])
        for kind, image in (("Image_Textual", f"{split}.png"), ("Pure_Text", "")):
            item = next(i for i in json.loads(person["metadata"]) if (i["Task"], i["Type"]) == ("facts", kind))
            row = {"id": f"{split} № {kind}", "image": image, "question": item["Question"], "answer": item["Answer"]}
            rows.append(row | {"subject": person["ID"], "split": split, "facts": item["Facts"]})
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return rows


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("by-hand")


@pytest.fixture(scope="module")
def plain() -> Plain:
    return Plain()


@pytest.fixture(scope="module")
def rows(folder: Path, plain: Plain) -> list[Row]:
    return [plain.row(question, folder) for question in questions(folder)]


@pytest.fixture(scope="module")
def cache(folder: Path, plain: Plain, rows: list[Row]) -> Path:
    return write_cache(folder / "cache", rows, plain)


def test_the_rows_are_worth_writing(rows):
    assert {(row["view"], row["modality"]) for row in rows} == {
        *(("noise+icu", "image"), ("icu", "text")),
        *(("base", "image"), ("base", "text")),
    }
    assert len({len(position) for row in rows for position in row["topk_ids"]}) > 2
    assert any(any(row["fact_mask"] or []) for row in rows)


def test_verify_finds_nothing_at_all(cache):
    report = verify_cache(open_cache(cache))

    assert (report.parts, report.rows, report.findings) == (2, 4, ())


def test_status_counts_it(cache, rows):
    status = cache_status(open_cache(cache))

    assert (status.rows, status.missing_rows, status.vocabulary) == (4, 0, 1536)
    assert {(count.split, count.view, count.modality, count.tokens) for count in status.counts} == {
        (row["split"], row["view"], row["modality"], len(row["token_ids"])) for row in rows
    }


def test_sql_reads_it_token_by_token(cache, rows, plain):
    query = "SELECT target_id, pos, token_text, token_rank, len(topk_ids) AS width, is_fact FROM tokens ORDER BY ALL"

    assert run_sql(cache, query).to_pylist() == [
        {
            "target_id": row["target_id"],
            "pos": pos,
            "token_text": plain.processor.tokenizer.decode([token]),
            "token_rank": row["token_rank"][pos],
            "width": len(row["topk_ids"][pos]),
            "is_fact": row["fact_mask"] and row["fact_mask"][pos],
        }
        for row in sorted(rows, key=lambda row: row["target_id"])
        for pos, token in enumerate(row["token_ids"])
    ]


def test_distill_trains_on_it(cache, folder):
    """The retain rows are the base's own view of plain questions, so that a student has nothing to learn at first."""
    recipe, place = load_recipe(str(folder / "recipe.yaml"))

    result = run_distill(recipe, load_examples(recipe.data, folder=place), cache, folder / "student")

    first = result.losses[0]
    assert (result.num_steps, result.num_rows) == (2, {"forget": 2, "retain": 2})
    assert first.retain is not None and abs(first.retain) < 1e-5 < 0.1 < first.forget


def test_the_teacher_pass_has_nothing_to_add(cache, folder):
    recipe, place = load_recipe(str(folder / "recipe.yaml"))
    manifests = {path.name: path.read_bytes() for path in (cache / "manifest").iterdir()}

    job = prepare_teacher(recipe, load_examples(recipe.data, folder=place), engine="transformers")
    result = run_teacher(job, cache)

    assert (result.planned, result.already_cached, result.generated) == (4, 4, 0)
    assert {path.name: path.read_bytes() for path in (cache / "manifest").iterdir()} == manifests


def no_tail(rows: list[Row]) -> list[Row]:
    """Sorted, but as if the mass outside the candidates were of no interest."""
    rows = sorted(rows, key=lambda row: row["target_id"])
    return [{**row, "tail_logprob": [-math.inf] * len(row["token_ids"])} for row in rows]


@pytest.mark.parametrize(
    ("rule", "change"),
    [
        ("order", {"sort": lambda rows: sorted(rows, key=lambda row: row["target_id"], reverse=True)}),
        ("name", {"name": lambda rows: sha("".join(row["target_id"] for row in rows))}),
        ("mass", {"sort": no_tail}),
    ],
)
def test_what_is_written_against_the_page_is_found(tmp_path, rows, plain, rule, change):
    report = verify_cache(open_cache(write_cache(tmp_path, rows, plain, **change)))

    assert report.counts.keys() == {rule}
