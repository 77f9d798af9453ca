"""The shape of the code: sizes of files and functions, circles of imports, annotations, names of classes.

command: python benchmarks/house.py
Prints a table with a row for each package, and under it what a reader would look up next: the names of the longest
file and function, and every circle, crowded folder, function without annotations and class name that occurs twice.
A circle is a strongly connected component of two or more among the children (folders and files) of one folder, at
any depth; an import inside a function counts like one at the top of a file. Lines of a function are counted from
`def` to its last line, with its docstring.
"""

import ast
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
NAMESPACE = "scanfoundry"
PACKAGES = ("configs", "backbones", "datasets", "pretrain", "finetune", "launch")
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Shape:
    """What is counted of one package; `lines` of files and functions by their name."""

    package: str
    files: dict[str, int] = field(default_factory=dict)
    functions: dict[str, int] = field(default_factory=dict)
    bare: list[str] = field(default_factory=list)
    circles: list[list[str]] = field(default_factory=list)
    in_root: int = 0
    twice: dict[str, int] = field(default_factory=dict)

    @property
    def annotated(self) -> float:
        """Share of the functions whose arguments and result all have a type."""
        return 1 - len(self.bare) / max(1, len(self.functions))


def shape_of(package: str, root: Path = ROOT) -> Shape:
    """Count one package below `root`."""
    shape = Shape(package)
    classes: Counter[str] = Counter()
    for path in sorted((root / package).rglob("*.py")):
        name = path.relative_to(root).as_posix()
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        shape.files[name] = len(text.splitlines())
        for function in (node for node in ast.walk(tree) if isinstance(node, Function)):
            called = f"{name}:{function.lineno} {function.name}"
            shape.functions[called] = (function.end_lineno or function.lineno) - function.lineno + 1
            if not is_annotated(function):
                shape.bare.append(called)
        classes.update(node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef))
    # `__init__.py` is the folder itself, not a file in it.
    shape.in_root = len([path for path in (root / package).glob("*.py") if path.name != "__init__.py"])
    shape.twice = {name: count for name, count in sorted(classes.items()) if count > 1}
    shape.circles = [circle for folder in folders(root / package) for circle in circles_in(folder, root)]
    return shape


def is_annotated(function: Function) -> bool:
    """Whether the result and every argument has a type; `self` and `cls` need none."""
    given = function.args
    named = [*given.posonlyargs, *given.args, *given.kwonlyargs, given.vararg, given.kwarg]
    first = (given.posonlyargs + given.args)[:1]
    wanted = [each for each in named if each and not (each in first and each.arg in ("self", "cls", "mcs"))]
    return function.returns is not None and all(each.annotation is not None for each in wanted)


def folders(package: Path) -> list[Path]:
    """The package and every folder in it that holds Python files."""
    return sorted({path.parent for path in package.rglob("*.py")})


def circles_in(folder: Path, root: Path) -> list[list[str]]:
    """The circles among the children of one folder: sorted names, with the folder before them."""
    prefix = (NAMESPACE, *folder.relative_to(root).parts)
    # Beside the packages the root holds an environment, tests and benchmarks, which are no part of the namespace.
    inside = [root / package for package in PACKAGES] if folder == root else list(folder.iterdir())
    files = [path for each in inside for path in (each.rglob("*.py") if each.is_dir() else [each])]
    files = [path for path in files if path.suffix == ".py"]
    children = {path.relative_to(folder).parts[0].removesuffix(".py") for path in files}
    graph: dict[str, set[str]] = {child: set() for child in children - {"__init__"}}
    for path in files:
        here = path.relative_to(folder).parts[0].removesuffix(".py")
        for parts in imported(path):
            # `folder.__init__` imports its children as a matter of course.
            if here in graph and parts[: len(prefix)] == prefix and len(parts) > len(prefix):
                graph[here].add(parts[len(prefix)])
    where = folder.relative_to(root).as_posix()
    found = components({child: others & set(graph) for child, others in graph.items()})
    return [[f"{where}/{child}" for child in sorted(circle)] for circle in found if len(circle) > 1]


@cache
def imported(path: Path) -> list[tuple[str, ...]]:
    """The dotted names that a file imports, each as its parts; a name taken from a module is one more part."""
    found: list[tuple[str, ...]] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [(*node.module.split("."), alias.name) for alias in node.names]
    return found


def components(graph: dict[str, set[str]]) -> list[set[str]]:
    """Strongly connected components: nodes that reach each other. The graphs are small, so reachability will do."""
    reach = {node: reachable(node, graph) for node in graph}
    found: list[set[str]] = []
    for node in sorted(graph):
        if not any(node in circle for circle in found):
            found.append({node} | {other for other in reach[node] if node in reach[other]})
    return found


def reachable(start: str, graph: dict[str, set[str]]) -> set[str]:
    """Every node that can be reached from `start` over at least one edge."""
    seen: set[str] = set()
    waiting = list(graph[start])
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting.extend(graph[node])
    return seen


def report(shapes: list[Shape]) -> str:
    """The table, and under it the names behind its numbers."""
    head = ("package", "files", "median", "longest", "functions", "median", "longest", "circles", "root", "annotated",
            "twice")  # fmt: skip
    lines = ["  ".join(f"{word:>9}" for word in head)]
    for each in shapes:
        files, functions = each.files.values(), each.functions.values()
        row = (each.package, len(files), median(files), max(files), len(functions), median(functions), max(functions),
               len(each.circles), each.in_root, f"{each.annotated:.1%}", len(each.twice))  # fmt: skip
        lines.append("  ".join(f"{word!s:>9}" for word in row))
    for each in shapes:
        lines += ["", f"{each.package}"]
        lines += [f"  longest file      {_longest(each.files)}", f"  longest function  {_longest(each.functions)}"]
        lines += [f"  circle            {', '.join(circle)}" for circle in each.circles]
        lines += [f"  no annotation     {name}" for name in each.bare]
        lines += [f"  class             {name}: {count} times" for name, count in each.twice.items()]
    return "\n".join(lines)


def _longest(lines: dict[str, int]) -> str:
    name = max(lines, key=lambda each: lines[each])
    return f"{lines[name]} lines, {name}"


if __name__ == "__main__":
    print(report([shape_of(package) for package in PACKAGES]))
