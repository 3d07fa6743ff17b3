"""Engines: the same contract for each of them, on real programs, and what a board must not suffer from."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import threading
import venv
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from armlet_runtime import engines
from armlet_runtime.engines import executorch, executorch_shim
from armlet_runtime.engines.base import Program, match_tensors
from armlet_runtime.engines.registry import get_engine
from armlet_runtime.errors import EngineError
from tests.support import artefacts

SUFFIXES = {"litert": "tflite", "executorch": "pte", "onnx": "onnx"}
TWO_INPUTS = {"a": (1, 3), "b": (1, 3)}
TWO_OUTPUTS = {"difference": (1, 3), "joined": (1, 9)}
A = np.array([[1, 2, 3]], np.float32)
B = np.array([[10, 20, 30]], np.float32)
PROT_NONE = 0  # of mprotect(2); the mmap module has no name for it


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


def test_outputs_go_into_given_arrays(two: Program) -> None:
    out = {"joined": np.zeros((1, 9), np.float32), "difference": np.zeros((1, 3), np.float32)}
    row = np.zeros((1, 30), np.float32)
    out["joined"] = row[:, 10:19]  # a part of a row is contiguous
    for a in (A, A * 3):
        assert two({"a": a, "b": B}, out) is out
        np.testing.assert_array_equal(out["difference"], a - B)
        np.testing.assert_array_equal(row[:, 10:19], np.concatenate([a, B, a], axis=1))
    assert not row[:, :10].any() and not row[:, 19:].any()
    two({"a": A, "b": B})
    np.testing.assert_array_equal(out["difference"], A * 3 - B)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({}, "gives the outputs difference, joined, and was given joined"),
        ({"difference": np.zeros((1, 3))}, r"'difference' must be float32 \(1, 3\), and was given float64"),
        ({"difference": np.zeros((3, 1), np.float32)}, r"and was given float32 \(3, 1\)"),
        ({"difference": np.zeros((1, 6), np.float32)[:, ::2]}, "must be contiguous, aligned and writeable"),
        ({"difference": np.broadcast_to(np.float32(0), (1, 3))}, "must be contiguous, aligned and writeable"),
    ],
)
def test_wrong_places_for_outputs_are_refused(two: Program, wrong: dict[str, np.ndarray], words: str) -> None:
    with pytest.raises(EngineError, match=words):
        two({"a": A, "b": B}, {"joined": np.zeros((1, 9), np.float32)} | wrong)


def test_inputs_may_end_where_memory_ends(engine_name: str, two: Program) -> None:
    """XNNPACK reads past the end of its inputs, and the page behind one need not be there."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, 2 * page)
    array = np.frombuffer(memory, np.float32, count=3, offset=page - 12).reshape(1, 3)
    array[:] = B
    libc = ctypes.CDLL(None, use_errno=True)
    behind = ctypes.c_void_p(array.ctypes.data + 12)
    assert libc.mprotect(behind, page, PROT_NONE) == 0
    np.testing.assert_array_equal(two({"a": A, "b": array})["difference"], A - B)
    assert libc.mprotect(behind, page, mmap.PROT_READ | mmap.PROT_WRITE) == 0


def test_inputs_may_be_read_only_or_unaligned(two: Program) -> None:
    fixed = np.frombuffer(B.tobytes(), np.float32).reshape(1, 3)
    shifted = np.frombuffer(b"x" + B.tobytes(), np.float32, offset=1).reshape(1, 3)
    assert not fixed.flags.writeable and not shifted.flags.aligned
    for array in (fixed, shifted):
        np.testing.assert_array_equal(two({"a": A, "b": array})["difference"], A - B)


def test_a_program_is_loaded_from_its_file(engine_name: str, small_draft: Path, tmp_path: Path) -> None:
    engine, path = get_engine(engine_name), small_draft / "programs" / f"two.{SUFFIXES[engine_name]}"
    program = engine.load(path, TWO_INPUTS, TWO_OUTPUTS)
    np.testing.assert_array_equal(program({"a": A, "b": B})["difference"], A - B)
    with pytest.raises(EngineError, match=r"cannot read the program .*nowhere.pte: No such file or directory"):
        engine.load(tmp_path / "nowhere.pte", TWO_INPUTS, TWO_OUTPUTS)
    (tmp_path / "noise").write_bytes(bytes(100))
    with pytest.raises(EngineError, match="does not load"):
        engine.load(tmp_path / "noise", TWO_INPUTS, TWO_OUTPUTS)


def test_threads_take_turns(engine_name: str, small_draft: Path) -> None:
    """Two programs, each called from two threads at a time, then closed under their hands."""
    engine = get_engine(engine_name)
    files = [small_draft / "programs" / f"{name}.{SUFFIXES[engine_name]}" for name in ("acc", "gyro")]
    programs = [engine.load(file.read_bytes(), {"window": (1, 3, 50)}, {"token": (1, 16)}) for file in files]
    windows = np.random.default_rng(0).standard_normal((2, 1, 3, 50)).astype(np.float32)
    wanted = [[program({"window": window})["token"] for window in windows] for program in programs]
    closing = threading.Event()

    def work(which: int, window: int) -> int:
        for count in range(100_000):
            try:
                got = programs[which]({"window": windows[window]})["token"]
            except EngineError as error:
                assert "was closed" in str(error)
                return count
            np.testing.assert_array_equal(got, wanted[which][window])
            if count == 500:
                closing.set()
        raise AssertionError("the program was not closed")

    with ThreadPoolExecutor(4) as pool:
        running = [pool.submit(work, which, window) for which in (0, 1) for window in (0, 1)]
        closing.wait(60)
        for program in programs:
            program.close()
        assert sum(future.result() for future in running) >= 500


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
    with pytest.raises(EngineError, match="the engine 'litert' takes nothing after a colon; only onnx does"):
        get_engine("litert:cuda")


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_that_is_not_here_is_refused_by_name(provider: str) -> None:
    import onnxruntime

    name = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}[provider]
    if name in onnxruntime.get_available_providers():
        pytest.skip(f"this onnxruntime has {name}")
    with pytest.raises(EngineError, match=f"'onnx:{provider}' cannot be used here: .* has no {name}, only cpu"):
        get_engine(f"onnx:{provider}")
    with pytest.raises(EngineError, match="there is no provider 'rocm'; there are cpu, cuda, tensorrt"):
        get_engine("onnx:rocm")
    assert get_engine("onnx:cpu").name == "onnx"


def test_programs_loaded_in_several_threads_leave_stderr_where_it_was(small_draft: Path) -> None:
    """LiteRT's note about its delegate is kept off the terminal, and nothing else of the process is."""
    code = """
import os, sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from armlet_runtime.engines import get_engine
data = Path(sys.argv[1]).read_bytes()
before = os.fstat(2)
sys.setswitchinterval(1e-6)
start = threading.Barrier(8)
def load(number):
    start.wait()
    for _ in range(40):
        get_engine("litert").load(data, {"window": (1, 3, 50)}, {"token": (1, 16)})
with ThreadPoolExecutor(8) as threads:
    list(threads.map(load, range(8)))
after = os.fstat(2)
assert (before.st_dev, before.st_ino) == (after.st_dev, after.st_ino), "stderr is another file now"
os.write(2, b"INFO: of the program itself\\n")
get_engine("litert").load(data, {"window": (1, 3, 50)}, {"token": (1, 16)})
"""
    path = str(small_draft / "programs" / "acc.tflite")
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stderr == "INFO: of the program itself\n"


@pytest.mark.parametrize("engine_name", SUFFIXES)
def test_no_leak_no_torch_nothing_on_stdout(engine_name: str, small_draft: Path) -> None:
    """In a fresh process: memory must not rise with calls (in both forms) and loads.

    Six blocks each; the median of their growth counts, as an allocator takes a larger piece once in a while.
    """
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
window, out = np.ones((1, 3, 50), np.float32), {"token": np.zeros((1, 16), np.float32)}
program = load()
def calls(n):
    for _ in range(n // 2):
        program({"window": window + 1})
        program({"window": window}, out)
    return resident_bytes()
def loads(n):
    for _ in range(n):
        once = load()
        once({"window": window})
        once.close()
    return resident_bytes()
calls(20000); loads(100)
after_calls = [calls(20000) for _ in range(7)]
after_loads = [loads(50) for _ in range(7)]
a_call, a_load = np.median(np.diff(after_calls)) / 20000, np.median(np.diff(after_loads)) / 50
started = len(os.listdir("/proc/self/task")) - threads
print(a_call, a_load, started, *[m for m in ("torch", "executorch") if m in sys.modules])
"""
    out = python(code, engine_name, str(small_draft / "programs" / f"acc.{SUFFIXES[engine_name]}"))
    assert len(out.splitlines()) == 1, out  # an engine that chats on stdout would break commands that print JSON
    bytes_a_call, bytes_a_load, started, *imported = out.split()
    assert imported == []
    assert float(bytes_a_call) < 1  # a megabyte in a million calls; the smallest object of Python takes 16 times that
    assert float(bytes_a_load) < 4000  # less than a program's weights
    assert int(started) == 0, "the engine started a thread pool"


def test_programs_that_share_a_workspace_do_not_disturb_each_other(small_draft: Path) -> None:
    """After another program made the shared workspace grow, and after one was freed."""
    engine = get_engine("executorch")
    if not isinstance(engine, executorch.ShimEngine):
        pytest.skip("executorch-numpy-runtime serves instead of the shim")
    programs = small_draft / "programs"
    wide = engine.load(programs / "acc.pte", {"window": (1, 3, 50)}, {"token": (1, 16)})
    window = np.random.default_rng(0).standard_normal((1, 3, 50)).astype(np.float32)
    token = wide({"window": window})["token"]
    wide.close()
    narrow = engine.load(programs / "two.pte", TWO_INPUTS, TWO_OUTPUTS)
    np.testing.assert_array_equal(narrow({"a": A, "b": B})["difference"], A - B)
    wide = engine.load(programs / "acc.pte", {"window": (1, 3, 50)}, {"token": (1, 16)})
    for _ in range(50):
        np.testing.assert_array_equal(wide({"window": window})["token"], token)
        np.testing.assert_array_equal(narrow({"a": B, "b": A})["difference"], B - A)
    wide.close()
    np.testing.assert_array_equal(narrow({"a": A, "b": B})["difference"], A - B)


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


@pytest.fixture(scope="session")
def legacy_python() -> Path:
    """The interpreter of an environment with the TFLite runtime and NumPy 1, made once and kept in the cache."""
    if sys.version_info >= (3, 12):
        pytest.skip("tflite-runtime exists for Python 3.11 and older only")
    folder = executorch_shim.cache_folder() / "tflite-{}.{}".format(*sys.version_info)
    with artefacts.locked(folder.with_name(f".{folder.name}.lock")):
        if not (folder / "complete").exists():
            venv.create(folder, with_pip=True, clear=True)
            done = subprocess.run(
                [folder / "bin" / "python", "-m", "pip", "install", "-q", "numpy<2", "tflite-runtime==2.14.0",
                 "msgspec", "cryptography"],
                capture_output=True, text=True,
            )  # fmt: skip
            if done.returncode != 0:
                pytest.skip(f"tflite-runtime cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
            (folder / "complete").touch()
    return folder / "bin" / "python"


def test_the_legacy_engine_runs_the_same_programs(legacy_python: Path, small_draft: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    done = subprocess.run(
        [legacy_python, "-m", "armlet_runtime.checks", "export_proof", small_draft, small_draft / "input.npz", out,
         "--engine", "tflite"],
        capture_output=True, text=True, env={"PYTHONPATH": str(Path(engines.__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with np.load(out) as proof:
        np.testing.assert_allclose(proof["logits"], np.load(small_draft / "golden" / "litert.npy"), atol=1e-5)
        assert '"engine":"tflite","version":"2.14.0"' in str(proof["report"])


def test_the_legacy_engine_keeps_the_same_contract(legacy_python: Path, small_draft: Path) -> None:
    code = """
import sys
from pathlib import Path
import numpy as np
from armlet_runtime.engines import get_engine
from armlet_runtime.errors import EngineError
a, b = np.array([[1, 2, 3]], np.float32), np.array([[10, 20, 30]], np.float32)
out = {"difference": np.zeros((1, 3), np.float32), "joined": np.zeros((1, 9), np.float32)}
engine = get_engine("tflite")
for source in (Path(sys.argv[1]), Path(sys.argv[1]).read_bytes()):
    program = engine.load(source, {"a": (1, 3), "b": (1, 3)}, {"difference": (1, 3), "joined": (1, 9)})
    assert np.array_equal(program({"b": b, "a": a[:, ::-1].copy()[:, ::-1]})["difference"], a - b)
    assert program({"a": b, "b": a}, out) is out and np.array_equal(out["difference"], b - a)
    program.close(); program.close()
    try:
        program({"a": a, "b": b})
    except EngineError as error:
        print(error)
"""
    done = subprocess.run(
        [legacy_python, "-c", code, small_draft / "programs" / "two.tflite"],
        capture_output=True, text=True, env={"PYTHONPATH": str(Path(engines.__file__).parents[2])},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == "the program was closed\n" * 2


def test_the_legacy_engine_is_refused_where_it_cannot_work() -> None:
    reason = str(engines.available()["tflite"])
    assert "use the engine 'litert' instead (pip install armlet), which runs the same programs" in reason
    if sys.version_info >= (3, 12):
        assert "tflite-runtime 2.14.0 exists for Python 3.11 and older only" in reason
    elif int(np.__version__.split(".")[0]) >= 2:
        assert f"tflite-runtime 2.14.0 does not work with NumPy {np.__version__}; pip install 'numpy<2'" in reason
    with pytest.raises(EngineError, match="'tflite' cannot be used here"):
        get_engine("tflite")


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
    assert f"executorch 1.4.0 is installed, and only {executorch_shim.WHEEL_VERSION} will do" in out


def test_the_shim_is_made_from_a_downloaded_wheel(tmp_path: Path) -> None:
    """As for a board without a compiler; here from the installed wheel, packed again."""
    wheel = executorch_shim.installed_wheel()
    packed = tmp_path / f"executorch-{executorch_shim.WHEEL_VERSION}-cp313-cp313-manylinux_2_28_x86_64.whl"
    with zipfile.ZipFile(packed, "w") as archive:
        for file in (*(wheel / "include").rglob("*.h"), *(wheel / "lib").glob("*.so")):
            archive.write(file, Path("executorch") / file.relative_to(wheel))
    command = [sys.executable, "-m", "armlet_runtime.engines.executorch_build"]
    done = subprocess.run([*command, packed, "--out", tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == tmp_path / executorch_shim.file_name("x86_64")

    other = packed.rename(tmp_path / packed.name.replace(executorch_shim.WHEEL_VERSION, "1.4.0"))
    done = subprocess.run([*command, other, "--out", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2
    assert "is not the name of a wheel of executorch 1.5.1 for Linux" in done.stderr


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
