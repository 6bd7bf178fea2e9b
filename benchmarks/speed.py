"""Speed of the default compared with targets and contenders, timed alternately in one run, as Markdown.

python benchmarks/speed.py --earlier EARLIER
python benchmarks/speed.py --profile

EARLIER is a checkout of an earlier commit: `git worktree add EARLIER f9878ac`. Rows that compare with it are omitted
without it, and those of PatchCore without anomalib. A full run takes about ten minutes on two idle cores; --rows
selects rows.

The packaged network and default settings are used unless a row says otherwise; pictures are square crops of
photographs. Every contender runs in its own process. All are timed alternately, once to warm up and once in each round,
so that they share the machine's conditions. A figure is the median ratio over rounds, with the interquartile range.

earlier     the default against the earlier package, arrays
patchcore   evidence="patch" without rotated views against anomalib's PatchcoreModel (coreset 0.1), same number of
            patches; PatchCore starts from ready tensors, ours from arrays
networks    the default against bare passes of its teacher and student, on ready tensors: with torch's threads, and with
            one thread for each batch, as in the default
shots       many support images against few, for each precision
sizes       larger images against the earlier package; peak resident memory (including libraries) and time of fit
one         one array per call
files       large JPEG files against arrays
student     time saved without the student
workers     n_jobs=2 against n_jobs=1, and whether the scores have the same bits
many        many more support images: time of a score, and size of the .fsad file
cli         `fewshot-ad score` of one image in a new process against the earlier package's

--profile prints the processor time per image by part, with n_jobs=1.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
OWN = HERE.parents[1]
_CLI = "import sys; from fewshot_ad.cli import main; sys.exit(main())"
_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_tile")


class Process:
    """A package in a separate process; see speed_worker.py."""

    def __init__(self, root: Path, threads: int, folder: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(HERE.with_name("speed_worker.py"))], cwd=folder, env=environment(root, threads),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.about = self.ask("about")

    def ask(self, command: str, **options: Any) -> Any:
        """Send a command and return its result."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps({"command": command, **options}), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise SystemExit(f"{command} failed, see above.")
        return json.loads(answer)

    def end(self) -> None:
        """End the process, and wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def environment(root: Path, threads: int) -> dict[str, str]:
    """Set the imported package, and torch's number of threads, for a process."""
    return {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": str(threads)}


def middle(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the median, and the ends of the interquartile range."""
    ordered = sorted(values)
    return statistics.median(ordered), ordered[len(ordered) // 4], ordered[-1 - len(ordered) // 4]


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    return [a / b for a, b in zip(above, below, strict=True)]


class Bench:
    """Measurement of rows, each printed when it is ready."""

    def __init__(self, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self._processes: dict[str, Process] = {}
        self.fits: dict[str, float] = {}
        quick = args.quick
        self.warm, self.rounds = (0, 1) if quick else (1, args.rounds)
        self.side = 64 if quick else 128
        self.larger = ((96, 8, 2),) if quick else ((224, 4, 32), (448, 8, 8))
        self.batch = 8 if quick else 200
        self.few, self.usual, self.more, self.many = (2, 3, 4, 9) if quick else (2, 4, 8, 64)
        self.precisions = ("auto", "float32") if quick else ("auto", "float32", "bfloat16", "float16", "float64")

    def process(self, name: str) -> Process:
        """Return a contender's process, started on first use."""
        if name not in self._processes:
            root = self.args.earlier if name.startswith("earlier") else OWN
            self._processes[name] = Process(root, self.args.threads, self.folder)
        return self._processes[name]

    def end(self, *names: str) -> None:
        """End the named processes, or all."""
        for name in names or list(self._processes):
            self._processes.pop(name).end()

    def detector(self, process: str, shots: int, side: int, **parameters: Any) -> str:
        """Fit a detector in a process unless it exists; return its name."""
        name = json.dumps([process, shots, side, parameters])
        if name not in self.fits:
            self.fits[name] = self.process(process).ask("fit", name=name, shots=shots, side=side, **parameters)
        return name

    def scoring(self, process: str, name: str, n: int, side: int, command: str = "score") -> Callable[[], float]:
        """Return a function that scores n pictures and returns the seconds."""
        return lambda: self.process(process).ask(command, name=name, n=n, side=side)

    def in_turn(self, *ways: Callable[[], float]) -> list[list[float]]:
        """Call each function once to warm up, then once per round, alternately; return their results."""
        found: list[list[float]] = [[] for _ in ways]
        for number in range(1 - self.warm, self.rounds + 1):
            for values, way in zip(found, ways, strict=True):
                value = way()
                if number:
                    values.append(value)
        return found

    def say(
        self, what: str, goal: str, values: Sequence[float], met: bool | None, further: str, digits: int = 2
    ) -> None:
        """Print a row."""
        median, low, high = (f"{value:.{digits}f}" for value in middle(values))
        shown = median if len(values) == 1 else f"{median} ({low} to {high})"
        verdict = {None: "–", True: "yes", False: "**no**"}[met]
        print(f"| {what} | {goal} | {shown} | {verdict} | {further} |", flush=True)

    def at_least(self, what: str, goal: float, values: Sequence[float], further: str) -> None:
        """Print a row whose figure should be large."""
        self.say(what, f"at least {goal:g}", values, middle(values)[0] >= goal, further)

    def at_most(self, what: str, goal: float, values: Sequence[float], further: str, digits: int = 2) -> None:
        """Print a row whose figure should be small."""
        self.say(what, f"at most {goal:g}", values, middle(values)[0] <= goal, further, digits)

    @staticmethod
    def speeds(n: int, *seconds: Sequence[float]) -> str:
        """Format several times as images per second."""
        return " against ".join(f"{n / statistics.median(each):.3g}" for each in seconds) + " images/s"


# ---- rows


def row_earlier(bench: Bench) -> None:
    names = [(process, bench.detector(process, bench.usual, bench.side)) for process in ("own", "earlier")]
    own, earlier = bench.in_turn(*[bench.scoring(*name, bench.batch, bench.side) for name in names])
    what = f"default, K = {bench.usual}, {bench.side} px, {bench.batch} arrays: times the earlier speed"
    bench.at_least(what, 4, ratios(earlier, own), bench.speeds(bench.batch, own, earlier))


def row_patchcore(bench: Bench) -> None:
    if importlib.util.find_spec("anomalib") is None:
        print("| against PatchCore | – | not measured: anomalib is not installed | – | – |", flush=True)
        return
    for shots, goal in ((bench.usual, 2), (bench.more, 3)):
        peer = bench.process("patchcore")
        kept = peer.ask("patchcore", name=str(shots), shots=shots, side=bench.side, ratio=0.1)
        name = bench.detector("own", shots, bench.side, evidence="patch", augment=False, max_patches=kept)
        ways = [
            bench.scoring("own", name, bench.batch, bench.side),
            bench.scoring("patchcore", str(shots), bench.batch, bench.side, "score_patchcore"),
        ]
        own, theirs = bench.in_turn(*ways)
        what = f'"patch", K = {shots}, {kept} patches: times PatchCore\'s speed'
        bench.at_least(what, goal, ratios(theirs, own), bench.speeds(bench.batch, own, theirs))


def row_networks(bench: Bench) -> None:
    name, own = bench.detector("own", bench.usual, bench.side), bench.process("own")

    def bare(in_threads: bool) -> Callable[[], float]:
        return lambda: own.ask("networks", name=name, n=bench.batch, side=bench.side, in_threads=in_threads)

    whole, plain, threads = bench.in_turn(bench.scoring("own", name, bench.batch, bench.side), bare(False), bare(True))
    bench.at_least(
        "default: share of its bare networks' speed",
        0.5,
        ratios(plain, whole),
        bench.speeds(bench.batch, whole, plain),
    )
    what = "the same, the networks too with one thread for each batch"
    bench.say(what, "–", ratios(threads, whole), None, bench.speeds(bench.batch, whole, threads))


def row_shots(bench: Bench) -> None:
    for precision in bench.precisions:
        n = min(bench.batch, {"float16": 8, "float64": 32}.get(precision, 64))
        names = [bench.detector("own", shots, bench.side, precision=precision) for shots in (bench.more, bench.few)]
        more, few = bench.in_turn(*[bench.scoring("own", name, n, bench.side) for name in names])
        what = f"K = {bench.more}, {precision}: times the time of K = {bench.few}"
        bench.at_most(what, 1.15, ratios(more, few), bench.speeds(n, more, few))


def row_sizes(bench: Bench) -> None:
    for side, goal, n in bench.larger:
        processes = ["own"] + (["earlier"] if bench.args.earlier else [])
        if not bench.args.quick:  # new ones, since a peak covers everything that a process did
            processes = [f"{name} {side}" for name in processes]
        names = [(process, bench.detector(process, bench.usual, side)) for process in processes]
        ways = [bench.scoring(*name, n, side) for name in names]
        for way in ways:
            way()
        peaks = [bench.process(process).ask("peak") for process in processes]
        before = bench.process(processes[0]).about["peak"]
        seconds = bench.in_turn(*ways)
        if bench.args.earlier:
            what = f"{side} px, {n} arrays: times the earlier speed"
            bench.at_least(what, goal, ratios(seconds[1], seconds[0]), bench.speeds(n, *seconds))
        if side == bench.larger[-1][0]:
            fits = [bench.fits[name] for _, name in names]
            bench.at_most(
                f"{side} px: peak, MB", 1200, peaks[:1], f"{before:.0f} MB before the fit; {_beside(peaks, 'MB')}", 0
            )
            bench.at_most(f"{side} px: fit, s", 8, fits[:1], _beside(fits, "s"), 1)
        if not bench.args.quick:
            bench.end(*processes)


def row_one(bench: Bench) -> None:
    processes = ["own"] + (["earlier"] if bench.args.earlier else [])
    names = [(process, bench.detector(process, bench.usual, bench.side)) for process in processes]
    n = min(bench.batch, 30)
    seconds = bench.in_turn(*[bench.scoring(*name, n, bench.side, "score_each") for name in names])
    medians = [1e3 * statistics.median(each) for each in seconds]
    bench.at_most("one array in a call, ms", 12, [1e3 * s for s in seconds[0]], _beside(medians, "ms"), 1)


def row_files(bench: Bench) -> None:
    name, own = bench.detector("own", bench.usual, bench.side), bench.process("own")
    n, side = (8, 300) if bench.args.quick else (64, 1500)
    ways = [
        bench.scoring("own", name, n, bench.side),
        lambda: own.ask("score_files", name=name, n=n, side=side),
    ]
    arrays, files = bench.in_turn(*ways)
    what = f"JPEG files of {side:,} px: share of the speed from arrays"
    bench.at_least(what, 0.8, ratios(arrays, files), bench.speeds(n, files, arrays))


def row_student(bench: Bench) -> None:
    whole = bench.detector("own", bench.usual, bench.side)
    without = bench.detector("own", bench.usual, bench.side, evidence=["patch", "embedding"])
    ways = [bench.scoring("own", name, bench.batch, bench.side) for name in (whole, without)]
    both, rest = bench.in_turn(*ways)
    shares = [1 - share for share in ratios(rest, both)]
    bench.at_most("the student's share of the default's time", 0.1, shares, bench.speeds(bench.batch, both, rest))


def row_workers(bench: Bench) -> None:
    names = [bench.detector("own", bench.usual, bench.side, n_jobs=n) for n in (1, 2)]
    one, two = bench.in_turn(*[bench.scoring("own", name, bench.batch, bench.side) for name in names])
    bits = {bench.process("own").ask("bits", name=name, n=min(bench.batch, 50), side=bench.side) for name in names}
    said = f"{bench.speeds(bench.batch, two, one)}; scores {'the same bits' if len(bits) == 1 else '**differ**'}"
    bench.at_least("n_jobs=2: times the speed of n_jobs=1", 1.7, ratios(one, two), said)


def row_many(bench: Bench) -> None:
    names = [bench.detector("own", shots, bench.side) for shots in (bench.many, bench.more)]
    many, more = bench.in_turn(*[bench.scoring("own", name, bench.batch, bench.side) for name in names])
    what = f"K = {bench.many}: times the time of K = {bench.more}"
    bench.at_most(what, 1.3, ratios(many, more), bench.speeds(bench.batch, many, more))
    file = str(bench.folder / "many.fsad")
    sizes = [bench.process("own").ask("save", name=name, file=file) for name in names]
    said = f"{sizes[0] / 1e6:.1f} against {sizes[1] / 1e6:.1f} MB"
    bench.at_most(f"K = {bench.many}: times the file's size of K = {bench.more}", 1.3, [sizes[0] / sizes[1]], said)


def row_cli(bench: Bench) -> None:
    image = bench.folder / "query.png"
    bench.process("own").ask("write_image", file=str(image), side=bench.side)
    ways = []
    for process, root in (("own", OWN), ("earlier", bench.args.earlier)):
        model = bench.folder / f"{process}.fsad"
        name = bench.detector(process, bench.usual, bench.side)
        bench.process(process).ask("save", name=name, file=str(model))
        ways.append(lambda root=root, model=model: _score_anew(root, model, image, bench.folder, bench.args.threads))
    own, earlier = bench.in_turn(*ways)
    said = f"{statistics.median(own):.2f} against {statistics.median(earlier):.2f} s"
    bench.at_most("`fewshot-ad score` of one image: times the earlier time", 0.6, ratios(own, earlier), said)


ROWS: dict[str, Callable[[Bench], None]] = {
    "earlier": row_earlier, "patchcore": row_patchcore, "networks": row_networks, "shots": row_shots,
    "sizes": row_sizes, "one": row_one, "files": row_files, "student": row_student, "workers": row_workers,
    "many": row_many, "cli": row_cli,
}  # fmt: skip
NEED_EARLIER = ("earlier", "cli")


def _beside(values: Sequence[float], unit: str) -> str:
    return f"earlier: {values[1]:.3g} {unit}" if len(values) > 1 else ""


def _score_anew(root: Path, model: Path, image: Path, folder: Path, threads: int) -> float:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _CLI, "score", str(model), str(image)], cwd=folder, check=False,
        env=environment(root, threads), capture_output=True, text=True,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    if done.returncode:
        raise SystemExit(f"fewshot-ad score failed: {done.stderr}")
    return seconds


def machine(about: dict[str, Any]) -> str:
    """Describe the machine."""
    info: dict[str, str] = {}
    if Path("/proc/cpuinfo").exists():
        pairs = (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
        info = {key.strip(): value.strip() for key, _, value in pairs}
    has = set(info.get("flags", "").split())
    flags = ", ".join(f"{flag} {'yes' if flag in has else 'no'}" for flag in _FLAGS)
    return (
        f"{info.get('model name', 'unknown processor')}, {os.cpu_count()} cores ({flags}), {about['threads']} threads, "
        f"torch {about['torch']}"
    )


def show_profile(bench: Bench) -> None:
    print("| part | ms of processor time for an image | share |\n|---|---|---|")
    name = bench.detector("own", bench.usual, bench.side, n_jobs=1)
    found = bench.process("own").ask("profile", name=name, n=bench.batch, side=bench.side)
    total = sum(found.values())
    for part, spent in sorted(found.items(), key=lambda one: -one[1]):
        print(f"| {part} | {spent:.2f} | {spent / total:.0%} |")
    print(f"| all | {total:.2f} | |")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--earlier", type=lambda name: Path(name).resolve(), metavar="PATH", help="checkout of an earlier commit")
    add("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=", ".join(ROWS))
    add("--rounds", type=int, default=7)
    add("--threads", type=int, default=os.cpu_count(), help="torch's number of threads in every process")
    add("--profile", action="store_true", help="print the processor time per image by part instead")
    add(
        "--quick",
        action="store_true",
        help="few and small images, to check that everything runs; figures are not usable",
    )
    return parser.parse_args()


def main() -> int:
    args = parse()
    if args.earlier and not (args.earlier / "fewshot_ad").is_dir():
        raise SystemExit(f"{args.earlier} holds no fewshot_ad: name the root of a checkout.")
    load = f", load before {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        try:
            print(f"{machine(bench.process('own').about)}{load}.\n")
            if args.quick:
                print("**A quick look: few and small images. Not to quote.**\n")
            if args.profile:
                show_profile(bench)
            else:
                show_rows(bench)
        finally:
            bench.end()
    return 0


def show_rows(bench: Bench) -> None:
    args = bench.args
    rows = [row for row in args.rows if args.earlier or row not in NEED_EARLIER]
    if left := [row for row in args.rows if row not in rows]:
        print(f"Left out: {', '.join(left)}. Pass --earlier, a checkout of an earlier commit.\n")
    print("| what | target | median (interquartile range) | met | beside |\n|---|---|---|---|---|", flush=True)
    for row in rows:
        ROWS[row](bench)


if __name__ == "__main__":
    sys.exit(main())
