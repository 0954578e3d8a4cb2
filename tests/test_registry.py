"""Registries: the three ways to register, names found, and what is said of wrong ones."""

import logging
import os
import sys

import pytest

from feddpa_jax.registry import Registry
from feddpa_jax.types import UserError


def shouts(**options) -> Registry:
    """A registry with two entries."""
    registry = Registry("shout", "app.shout", **options)

    @registry.register
    def loud(text):
        return text.upper()

    registry.register("louder", lambda text: text.upper() + "!")
    return registry


def test_names_items_and_attributes():
    registry = shouts()
    assert list(registry) == ["loud", "louder"] and len(registry) == 2
    assert registry["louder"]("a") == registry.louder("a") == "A!"
    assert "loud" in registry and "loudest" not in registry
    assert {"loud", "louder", "find"} <= set(dir(registry))
    with pytest.raises(AttributeError, match="no shout is named 'quiet'"):
        _ = registry.quiet
    with pytest.raises(KeyError):
        _ = registry["quiet"]
    assert not hasattr(registry, "_repr_html_")  # What notebooks ask every object for.


def test_registering_again_replaces_and_a_decorated_function_stays_itself():
    registry = shouts()

    @registry.register("loud")
    def softer(text):
        return text

    assert registry.loud is softer and softer("a") == "a"
    assert registry.name_of(softer) == "loud"
    assert registry.find(softer) is registry.find("loud") is softer
    registry.remove("loud")
    assert list(registry) == ["louder"] and registry.name_of(softer) is None
    assert registry.find(softer) is softer  # A thing need not be registered.


def test_options_make_an_entry():
    registry = Registry("shout", "app.shout", wrap=lambda thing, times=1: (thing, times))

    @registry.register(times=2)
    def loud(text):
        return text.upper()

    assert registry.loud == (loud, 2) and registry.find(loud) == (loud, 2)
    assert registry.options("loud") == registry.options(loud) == {"times": 2}
    assert registry.name_of((loud, 2)) is None and registry.name_of(registry.loud) == "loud"
    assert registry.find(len) == (len, 1) and registry.options(len) == {}
    with pytest.raises(TypeError):
        registry.register("other", loud, many=3)


@pytest.mark.parametrize("name", ["", "my.py:loud"])
def test_a_name_that_stands_for_a_file_is_refused(name):
    with pytest.raises(ValueError, match="without a colon"):
        shouts().register(name, len)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lod", r"app\.shout: 'lod' is unknown; did you mean 'loud'\? known: loud, louder; or"),
        ("xyz", r"app\.shout: 'xyz' is unknown; known: loud, louder; or FILE\.py:NAME"),
    ],
)
def test_unknown_names_are_told_the_nearest(name, message):
    for ask in (shouts().check, shouts().find, shouts().own_file):
        with pytest.raises(UserError, match=message):
            ask(name)


def test_a_users_own_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    registry = shouts()
    file = tmp_path / "my.py"
    file.write_text("open('runs', 'a').write('x')\ndef quiet(text): return text.lower()\n")
    registry.check("my.py:quiet")
    assert str(registry.own_file("my.py:quiet")) == "my.py"
    assert not (tmp_path / "runs").exists()  # Checking a name runs nothing.
    for _ in range(2):
        assert registry.find("my.py:quiet")("A") == "a"
    assert (tmp_path / "runs").read_text() == "x"
    os.utime(file, ns=(1, 1))
    registry.find("my.py:quiet")
    assert (tmp_path / "runs").read_text() == "xx"
    assert registry.sources(["loud", "my.py:quiet", len]) == {"my.py": file.read_bytes()}
    for name, message in (
        ("my.py:quite", r"app\.shout: my\.py has no function 'quite'; it has quiet$"),
        ("our.py:quiet", r"app\.shout: our\.py does not exist; .* --app\.shout FILE\.py:quiet"),
    ):
        with pytest.raises(UserError, match=message):
            registry.find(name)


def test_options_of_a_users_own_file(tmp_path, monkeypatch):
    """A decorator in the file tells the options; the name in the file finds them."""
    monkeypatch.chdir(tmp_path)
    registry = Registry("shout", "app.shout", wrap=lambda thing, times=1: (thing, times))
    monkeypatch.setattr(sys, "shouts", registry, raising=False)
    (tmp_path / "my.py").write_text(
        "import sys\n@sys.shouts.register('calm', times=3)\ndef quiet(text): return text\n"
    )
    assert registry.find("my.py:quiet")[1] == 3
    assert registry.options("my.py:quiet") == {"times": 3}
    assert "calm" in registry


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """A package with entry points, of which one is broken."""
    (tmp_path / "shouting.py").write_text("def wild(text): return text * 2\nloud = None\n")
    info = tmp_path / "shouting-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shouting\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[app.shouts]\nbroken = shouting:missing\nwild = shouting:wild\nloud = shouting:loud\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("shouting", None)


def test_entry_points_of_installed_packages(installed, caplog):
    registry = shouts(group="app.shouts")
    with caplog.at_level(logging.WARNING, "feddpa_jax"):
        assert registry["loud"]("a") == "A"  # A known name looks into no package, and stays.
        assert "shouting" not in sys.modules
        assert registry.wild("a") == "aa"
        assert set(registry) == {"loud", "louder", "wild"}
        with pytest.raises(UserError, match="'wold' is unknown; did you mean 'wild'"):
            registry.check("wold")
    (record,) = caplog.records
    assert "shout 'broken' of an installed package (shouting:missing)" in record.getMessage()
    assert "AttributeError" in record.getMessage()
    assert set(shouts(group="app.shouts")) == {"loud", "louder", "wild"}


def test_modules_are_imported_on_first_use_and_do_not_replace(tmp_path, monkeypatch):
    folder = tmp_path / "shout_modules"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "one.py").write_text("import sys\nsys.shouts.register('loud', lambda text: 'one')\n")
    (folder / "two.py").write_text("import sys\nsys.shouts.register('calm', lambda text: 'two')\n")
    monkeypatch.syspath_prepend(tmp_path)
    registry = Registry("shout", "app.shout", modules=("shout_modules",))
    monkeypatch.setattr(sys, "shouts", registry, raising=False)
    registry.register("loud", lambda text: "mine")
    assert "shout_modules.one" not in sys.modules
    assert (registry.calm(""), registry.loud("")) == ("two", "mine")
