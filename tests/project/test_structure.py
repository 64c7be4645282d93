"""How the code is built; ``python -m tests.project.structure`` prints the figures."""

from tests.project import structure


def test_imports_run_down_the_floors() -> None:
    assert structure.against_the_floors() == []


def test_nothing_imports_itself_through_others() -> None:
    assert structure.circles() == []
    assert structure.circles(folders=True) == []


def test_files_and_folders_are_read_in_one_sitting() -> None:
    assert structure.long_files() == {}
    large = {name: count for name, count in structure.folders().items() if count > structure.LARGEST_FOLDER}
    assert large == {}
