from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.provision import recipes
from harness.provision.recipes import Folders, GuestRecipe, HeapRecipe, QemuRecipe, Recipe
from harness.qemu.architectures import ARCHITECTURES

GOOD = 'default = true\nrelease = "bookworm"\npackages = ["qemu-system-x86"]\n'


def load(folder: Path, text: str) -> QemuRecipe:
    (folder / "7.2.toml").write_text(text)
    return recipes.load(folder, "7.2", QemuRecipe)


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        (GOOD + 'packges = ["x"]\n', 4, "unknown key 'packges'; allowed: default, release, suite, packages"),
        (GOOD + "[section]\nx = 1\n", 4, "unknown key 'section'"),
        (GOOD.replace('"bookworm"', "12"), 2, "release: Input should be a valid string"),
        (GOOD.replace('["qemu-system-x86"]', "[1]"), 3, "packages: Input should be a valid string"),
        (GOOD.replace("true", '"yes"'), 1, "default: Input should be a valid boolean"),
        (
            GOOD.replace("bookworm", "bookworm-backports"),
            2,
            "release: Value error, bookworm-backports is a suite of bookworm; set release = ",
        ),
        (GOOD + 'suite = "trixie-backports"\n', 4, "trixie-backports is no suite of bookworm, such as"),
        ('default = true\nrelease = "x"\n', 1, "a QEMU recipe has one of packages, configure and stripped"),
        ('default = true\nrelease = "bookworm\n', 2, "not TOML"),
    ],
)
def test_a_bad_recipe_names_file_line_and_key(tmp_path: Path, text: str, line: int, words: str) -> None:
    with pytest.raises(UsageError) as error:
        load(tmp_path, text)
    assert error.value.message.startswith(f"{tmp_path}/7.2.toml:{line}: ")
    assert words in error.value.message
    assert "\n" not in error.value.message


def test_a_good_recipe_is_read(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD) == QemuRecipe(default=True, release="bookworm", packages=["qemu-system-x86"])


def test_a_recipe_may_name_a_suite_that_is_preferred_to_its_release(tmp_path: Path) -> None:
    assert load(tmp_path, GOOD).suites == ["bookworm"]
    recipe = load(tmp_path, GOOD + 'suite = "bookworm-backports"\n')
    assert recipe.suites == ["bookworm", "bookworm-backports"]


@pytest.mark.parametrize("name", ["8.0", "../7.2", ""])
def test_an_unknown_name_lists_the_known_ones_by_version(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "qemu"
    folder.mkdir()
    for path in (folder / "10.0.toml", folder / "7.2.toml", tmp_path / "7.2.toml"):
        path.write_text(GOOD)
    with pytest.raises(UsageError, match=r"known: 7\.2, 10\.0"):
        recipes.load(folder, name, QemuRecipe)


def test_bytes_that_are_no_text_are_a_bad_recipe(tmp_path: Path) -> None:
    (tmp_path / "7.2.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=r"7\.2\.toml: cannot be read"):
        recipes.load(tmp_path, "7.2", QemuRecipe)


@pytest.mark.parametrize(("defaults", "words"), [((False, False), "not none"), ((True, True), "not ")])
def test_there_is_one_default(tmp_path: Path, defaults: tuple[bool, bool], words: str) -> None:
    for name, default in zip(("1", "2"), defaults, strict=True):
        (tmp_path / f"{name}.toml").write_text(GOOD.replace("true", str(default).lower()))
    with pytest.raises(UsageError, match=f"exactly one recipe must have 'default = true', {words}"):
        recipes.default_name(tmp_path, QemuRecipe)


def test_a_root_that_does_not_exist_is_named_with_its_line(tmp_path: Path) -> None:
    text = GOOD + 'kernel = "k"\nmodules = []\ncmdline = ""\nroot = "rot"\n'
    (tmp_path / "6.1.toml").write_text(text)
    recipe = recipes.load(tmp_path, "6.1", GuestRecipe)
    with pytest.raises(UsageError, match=r"6\.1\.toml:7: root: .*/rot is not a folder"):
        recipes.roots_of(tmp_path, "6.1", recipe)


def test_the_projects_own_recipes_can_all_be_read() -> None:
    images = recipes.recipes_folder()
    assert {"7.2", "10.0"} <= set(recipes.names(images / "qemu"))
    for name in recipes.names(images / "heap"):
        recipes.load(images / "heap", name, HeapRecipe)
    assert recipes.default_name(images / "virtiofsd", Recipe) == "trixie"
    for architecture in ARCHITECTURES.values():
        qemus, guests = (images / recipes.kind_of(kind, architecture) for kind in ("qemu", "guests"))
        for name in recipes.names(qemus):
            recipes.load(qemus, name, QemuRecipe)
        for name in recipes.names(guests):
            recipe = recipes.load(guests, name, GuestRecipe)
            assert (recipes.roots_of(guests, name, recipe)[0] / "etc/rcS").stat().st_mode & 0o111
        assert recipes.default_name(qemus, QemuRecipe) == "7.2"
        assert recipes.default_name(guests, GuestRecipe) == "6.1"


@pytest.fixture
def added(tmp_path: Path) -> Path:
    """A folder with a QEMU that is new."""
    (tmp_path / "own/qemu").mkdir(parents=True)
    (tmp_path / "own/qemu/7.2.toml").write_text(GOOD)
    (tmp_path / "more/qemu").mkdir(parents=True)
    (tmp_path / "more/qemu/9.9.toml").write_text(GOOD)
    return tmp_path / "more"


def test_recipes_of_another_folder_are_added(added: Path) -> None:
    folders = Folders(added.parent / "own", [added])
    folders.check_added()
    assert folders.names("qemu") == ["7.2", "9.9"]
    assert folders.default("qemu", QemuRecipe) == "7.2"
    assert folders.load("qemu", "9.9", QemuRecipe).packages == ["qemu-system-x86"]
    assert folders.folder("qemu", "9.9") == added / "qemu"
    with pytest.raises(UsageError, match=r"no recipe .*/own/qemu/1.0.toml; known: 7.2, 9.9"):
        folders.load("qemu", "1.0", QemuRecipe)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("qemu/7.2.toml", GOOD, "qemu/7.2.toml: there is another recipe qemu/7.2"),
        ("qemu/9.9.toml", GOOD + "x = 1\n", "qemu/9.9.toml:4: unknown key 'x'"),
        ("guests/mine.toml", GOOD, "guests/mine.toml:1: kernel, modules, root, cmdline: Field required"),
    ],
)
def test_a_bad_one_that_is_added_is_named(added: Path, name: str, text: str, words: str) -> None:
    (added / name).parent.mkdir(exist_ok=True)
    (added / name).write_text(text)
    with pytest.raises(UsageError) as error:
        Folders(added.parent / "own", [added]).check_added()
    assert error.value.message.startswith(f"{added}/{words}")


def test_a_folder_without_recipes_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"--recipes .*/nothing: has no guests/NAME.toml or qemu/NAME.toml"):
        Folders(tmp_path, [tmp_path / "nothing"]).check_added()
