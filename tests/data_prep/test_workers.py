from tests.data_prep.test_shard_errors import OPTIONS, SCRIPT


def test_workers_start_where_the_temporary_folder_has_a_long_path(command, folders, tmp_path, monkeypatch):
    scratch = tmp_path.joinpath(*["job_scratch_of_a_scheduler"] * 5)
    scratch.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(scratch))
    done = command(SCRIPT, folders, tmp_path / "dataset", *OPTIONS[:-1], 2)
    assert done.returncode == 0, done.stderr
    assert not list(scratch.iterdir())
