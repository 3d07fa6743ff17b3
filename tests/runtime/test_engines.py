"""Engines: the same contract for each of them, on real programs, and what a board must not suffer from."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import numpy as np
import pytest

from armlet_runtime import engines
from armlet_runtime.engines import executorch, get_engine
from armlet_runtime.engines.base import Program, match_tensors
from armlet_runtime.errors import EngineError

SUFFIXES = {"litert": "tflite", "executorch": "pte", "onnx": "onnx"}
TWO_INPUTS = {"a": (1, 3), "b": (1, 3)}
TWO_OUTPUTS = {"difference": (1, 3), "joined": (1, 9)}
A = np.array([[1, 2, 3]], np.float32)
B = np.array([[10, 20, 30]], np.float32)


@pytest.fixture(params=SUFFIXES)
def engine_name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def two_bytes(engine_name: str, small_draft: Path) -> bytes:
    return (small_draft / "programs" / f"two.{SUFFIXES[engine_name]}").read_bytes()


@pytest.fixture
def two(engine_name: str, two_bytes: bytes) -> Program:
    return get_engine(engine_name).load(two_bytes, TWO_INPUTS, TWO_OUTPUTS)


def python(code: str, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, timeout=120, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_all_engines_but_the_legacy_one_can_be_used_here() -> None:
    reasons = engines.available()
    assert list(reasons) == list(engines.NAMES)
    assert {name for name, reason in reasons.items() if reason is None} >= set(SUFFIXES)


def test_an_engine_says_what_it_is(engine_name: str) -> None:
    engine = get_engine(engine_name)
    assert engine.name == engine_name
    assert engine.version[0].isdigit()
    assert "1 thread" in engine.detail
    assert get_engine(engine_name) is engine


def test_inputs_go_by_name_not_by_order(two: Program) -> None:
    for inputs in ({"a": A, "b": B}, {"b": B, "a": A}):
        result = two(inputs)
        assert list(result) == list(TWO_OUTPUTS)
        np.testing.assert_array_equal(result["difference"], A - B)
        np.testing.assert_array_equal(result["joined"], np.concatenate([A, B, A], axis=1))


def test_strides_do_not_matter(two: Program) -> None:
    wide = np.zeros((6, 2), np.float32)
    wide[::2, 1] = B[0]
    column = wide[::2, 1][None]
    assert not column.flags.c_contiguous or column.strides[-1] != 4
    backwards = A[:, ::-1].copy()[:, ::-1]
    np.testing.assert_array_equal(two({"a": backwards, "b": column})["difference"], A - B)


def test_results_belong_to_the_caller(two: Program) -> None:
    first = two({"a": A, "b": B})
    kept = {name: array.copy() for name, array in first.items()}
    second = two({"a": B * 7, "b": A})
    for name, array in first.items():
        np.testing.assert_array_equal(array, kept[name])
        array[:] = -1  # writable, and not the program's memory
    np.testing.assert_array_equal(two({"a": B * 7, "b": A})["joined"], second["joined"])


@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({"a": A}, "takes the inputs a, b, and was given a"),
        ({"a": A, "b": B, "c": B}, "was given a, b, c"),
        ({"a": A, "c": B}, "was given a, c"),
        ({"a": A, "b": B[0]}, r"'b' must be float32 \(1, 3\), and was given float32 \(3,\)"),
        ({"a": A, "b": B.astype(np.float64)}, r"was given float64 \(1, 3\)"),
        ({"a": A, "b": [[1.0, 2.0, 3.0]]}, "was given list"),
    ],
)
def test_wrong_inputs_are_refused(two: Program, inputs: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        two(inputs)
    np.testing.assert_array_equal(two({"a": A, "b": B})["difference"], A - B)


@pytest.mark.parametrize(
    ("inputs", "outputs", "words"),
    [
        ({"a": (1, 3)}, TWO_OUTPUTS, "has 2 inputs, and the manifest promises 1"),
        (TWO_INPUTS, {"difference": (1, 3)}, "has 2 outputs, and the manifest promises 1"),
        ({"a": (1, 3), "b": (1, 4)}, TWO_OUTPUTS, r"input 'b' is float32 \(1, 3\), and the manifest promises"),
        (TWO_INPUTS, {"difference": (1, 9), "joined": (1, 3)}, "output '(difference|joined)' is float32"),
    ],
)
def test_a_program_must_be_what_is_promised(
    engine_name: str,
    two_bytes: bytes,
    inputs: dict[str, tuple[int, ...]],
    outputs: dict[str, tuple[int, ...]],
    words: str,
) -> None:
    with pytest.raises(EngineError, match=words):
        get_engine(engine_name).load(two_bytes, inputs, outputs)


def test_names_decide_when_they_are_the_promised_ones() -> None:
    actual = [("b", (1, 2), "float32"), ("a", (1, 3), "float32")]
    assert match_tensors("input", {"a": (1, 3), "b": (1, 2)}, actual) == [1, 0]
    assert match_tensors("input", {"x": (1, 2), "y": (1, 3)}, actual) == [0, 1]
    with pytest.raises(EngineError, match="is int8"):
        match_tensors("input", {"a": (1, 3)}, [("a", (1, 3), "int8")])


@pytest.mark.parametrize("length", [0, 3, 8, 64, 5000])
def test_nonsense_does_not_load(engine_name: str, length: int) -> None:
    noise = np.random.default_rng(length).bytes(length)
    with pytest.raises(EngineError, match="does not load"):
        get_engine(engine_name).load(noise, TWO_INPUTS, TWO_OUTPUTS)


def test_half_a_program_does_not_load(engine_name: str, two_bytes: bytes) -> None:
    """In a process of its own: an engine that reads past the end could end the process."""
    code = """
import sys
from armlet_runtime.engines import get_engine
from armlet_runtime.errors import EngineError
data = sys.stdin.buffer.read()
try:
    get_engine(sys.argv[1]).load(data, {"a": (1, 3), "b": (1, 3)}, {"difference": (1, 3), "joined": (1, 9)})
except EngineError as error:
    print("refused:", error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, engine_name], input=two_bytes[: len(two_bytes) // 2], capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(b"refused:"), done.stdout


def test_a_closed_program_says_so(two: Program) -> None:
    two.close()
    two.close()
    with pytest.raises(EngineError, match="was closed"):
        two({"a": A, "b": B})


def test_unknown_engines_are_refused() -> None:
    with pytest.raises(EngineError, match="there is no engine 'tensorrt'; there are litert, executorch, onnx, tflite"):
        get_engine("tensorrt")


@pytest.mark.parametrize("engine_name", SUFFIXES)
def test_no_leak_no_torch_nothing_on_stdout(engine_name: str, small_draft: Path) -> None:
    """20000 calls and 200 loads in a fresh process; memory after a warm-up must not grow with them."""
    code = """
import os, sys
import numpy as np
from pathlib import Path
from armlet_runtime.engines import get_engine
from armlet_runtime.machine import resident_bytes
name, path = sys.argv[1:]
data = Path(path).read_bytes()
get_engine(name)
threads = len(os.listdir("/proc/self/task"))  # NumPy's own, and what an import started
load = lambda: get_engine(name).load(data, {"window": (1, 3, 50)}, {"token": (1, 16)})
window = np.ones((1, 3, 50), np.float32)
program = load()
def calls(n):
    for _ in range(n):
        program({"window": window})
def loads(n):
    for _ in range(n):
        once = load()
        once({"window": window})
        once.close()
calls(2000); loads(50)
before = resident_bytes()
calls(20000)
called = resident_bytes()
loads(200)
loaded = resident_bytes()
started = len(os.listdir("/proc/self/task")) - threads
print(called - before, loaded - called, started, *[m for m in ("torch", "executorch") if m in sys.modules])
"""
    out = python(code, engine_name, str(small_draft / "programs" / f"acc.{SUFFIXES[engine_name]}"))
    assert len(out.splitlines()) == 1, out  # an engine that chats on stdout would break commands that print JSON
    grown_by_calls, grown_by_loads, started, *imported = out.split()
    assert imported == []
    assert int(grown_by_calls) < 20_000 * 20  # bytes a call: less than any result array
    assert int(grown_by_loads) < 200 * 4_000  # bytes a load: less than a program's weights
    assert int(started) == 0, "the engine started a thread pool"


def test_quantised_kernels_are_there_when_a_program_needs_them(small_draft: Path) -> None:
    code = """
import sys
from pathlib import Path
import numpy as np
from armlet_runtime.engines import get_engine
engine = get_engine("executorch")
before = engine.detail
program = engine.load(Path(sys.argv[1]).read_bytes(), {"x": (1, 3)}, {"rounded": (1, 3)})
result = program({"x": np.array([[0.6, -1.1, 0.2]], np.float32)})["rounded"]
print(before == engine.detail, "quantized kernels" in engine.detail, *result[0])
"""
    out = python(code, str(small_draft / "programs" / "rounded.pte"))
    changed, said, *result = out.split()
    assert [float(value) for value in result] == [0.5, -1.0, 0.0]
    if "numpy-runtime" not in get_engine("executorch").detail:
        assert (changed, said) == ("False", "True")


def test_the_way_without_a_compiler_keeps_the_same_contract(small_draft: Path) -> None:
    reason = executorch._why_not_numpy_runtime()
    if reason is not None:
        pytest.skip(reason)
    engine = executorch.NumpyRuntimeEngine()
    assert "its own thread pool" in engine.detail
    data = (small_draft / "programs" / "two.pte").read_bytes()
    program = engine.load(data, TWO_INPUTS, TWO_OUTPUTS)
    np.testing.assert_array_equal(program({"b": B, "a": A})["difference"], A - B)
    with pytest.raises(EngineError, match="the manifest promises"):
        engine.load(data, TWO_INPUTS, {"difference": (1, 9), "joined": (1, 3)})
    with pytest.raises(EngineError, match="does not load"):
        engine.load(data[: len(data) // 2], TWO_INPUTS, TWO_OUTPUTS)
    program.close()
    with pytest.raises(EngineError, match="was closed"):
        program({"a": A, "b": B})


def test_the_legacy_engine_runs_the_same_programs(small_draft: Path, tmp_path: Path) -> None:
    """In an environment of its own: tflite-runtime needs NumPy 1."""
    if sys.version_info >= (3, 12):
        pytest.skip("tflite-runtime exists for Python 3.11 and older only")
    venv.create(tmp_path / "env", with_pip=True)
    interpreter = tmp_path / "env" / "bin" / "python"
    subprocess.run(
        [interpreter, "-m", "pip", "install", "-q", "numpy<2", "tflite-runtime==2.14.0", "msgspec", "cryptography"],
        check=True, capture_output=True, timeout=300,
    )  # fmt: skip
    environment = {"PYTHONPATH": str(Path(engines.__file__).parents[2])}
    out = tmp_path / "o.npz"
    done = subprocess.run(
        [interpreter, "-m", "armlet_runtime.prove", small_draft, small_draft / "input.npz", out, "--engine", "tflite"],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(out) as proof:
        np.testing.assert_allclose(proof["logits"], np.load(small_draft / "golden" / "litert.npy"), atol=1e-5)
        assert '"engine":"tflite","version":"2.14.0"' in str(proof["report"])


def test_the_shim_is_compiled_once_and_kept(tmp_path: Path) -> None:
    code = "from armlet_runtime.engines import get_engine; print(get_engine('executorch').detail)"
    assert "shim" in python(code, ARMLET_CACHE=str(tmp_path / "cache"))
    (made,) = (tmp_path / "cache").iterdir()
    stamp = made.stat().st_mtime_ns
    # Without a compiler the kept one still serves.
    assert "shim" in python(code, ARMLET_CACHE=str(tmp_path / "cache"), PATH="/nonexistent")
    assert made.stat().st_mtime_ns == stamp


def test_without_a_compiler_the_shim_says_so(tmp_path: Path) -> None:
    code = "from armlet_runtime.engines import available; print(available()['executorch'])"
    out = python(code, ARMLET_CACHE=str(tmp_path / "empty"), PATH="/nonexistent")
    if sys.version_info >= (3, 12) and out.strip() == "None":
        pytest.skip("executorch-numpy-runtime is installed and serves instead")
    assert "g++ is needed once" in out
    assert not (tmp_path / "empty").exists()


def test_a_cache_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code = """
from armlet_runtime.engines import get_engine
from armlet_runtime.errors import EngineError
try:
    get_engine('executorch')
except EngineError as error:
    print(error)
"""
    out = python(code, ARMLET_CACHE=str(tmp_path / "file" / "cache"))
    assert "Not a directory; name another folder in $ARMLET_CACHE" in out


def test_a_compiler_that_fails_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "g++").write_text("#!/bin/sh\necho 'x.h: error: no such thing' >&2\nexit 1\n")
    (tmp_path / "g++").chmod(0o755)
    code = """
from armlet_runtime.engines import get_engine
from armlet_runtime.errors import EngineError
try:
    get_engine('executorch')
except EngineError as error:
    print(error)
"""
    out = python(code, ARMLET_CACHE=str(tmp_path / "cache"), PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert "does not compile with g++ here: x.h: error: no such thing" in out
    assert list((tmp_path / "cache").iterdir()) == []


def test_another_executorch_is_refused(tmp_path: Path) -> None:
    """A wheel of another version, seen first on the path: the shim must not be linked with it."""
    info = tmp_path / "executorch-1.4.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: executorch\nVersion: 1.4.0\n")
    code = "from armlet_runtime.engines import available; print(available()['executorch'])"
    path = f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"
    out = python(code, PYTHONPATH=path)
    if sys.version_info >= (3, 12) and out.strip() == "None":
        pytest.skip("executorch-numpy-runtime is installed and serves instead")
    assert f"executorch 1.4.0 is installed, and only {executorch.WHEEL_VERSION} will do" in out


def test_engines_that_are_not_installed_say_what_to_install(tmp_path: Path) -> None:
    """In an environment with NumPy alone."""
    venv.create(tmp_path / "env", with_pip=False)
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    origin = Path(np.__file__).parents[1]
    for entry in origin.iterdir():
        if entry.name.startswith("numpy"):
            (site / entry.name).symlink_to(entry)
    runtime = Path(engines.__file__).parents[2]
    done = subprocess.run(
        [tmp_path / "env" / "bin" / "python", "-c",
         "import json; from armlet_runtime.engines import available; print(json.dumps(available()))"],
        capture_output=True, text=True, env={"PYTHONPATH": str(runtime)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "pip install armlet" in done.stdout
    assert "pip install --no-deps executorch==1.5.1" in done.stdout
    assert "pip install 'armlet[onnx]'" in done.stdout
    assert "use the engine 'litert' instead" in done.stdout
