"""`--note`: a remark that a run, an evaluation and an oracle study keep."""

from pathlib import Path

from tests.command_line import run_main

QUICK = ["--limit_test_batches", "1", "--plot_weights_freq", "0", "--threads", "1", "--progress", "off"]
NOTE = "first try,\nwith 50 % [bold]less[/bold] :smile:"


def test_a_note_is_kept_in_the_report_and_shown_in_one_line_of_the_log(tmp_path: Path) -> None:
    train = ("--epochs", 0, "--prune_criterion", "EmptyCrit", "--limit_train_batches", 1, *QUICK)
    study = ("oracle", "--criterions", "WeightNorm", "--samples", 10, "--threads", 1, "--progress", "off")
    for command in (train, ("--eval", *QUICK), study):
        run = run_main(tmp_path, *command, "--note", NOTE)
        assert run.code == 0, run.err
        assert (run.oracle if command is study else run.report)["note"] == run.config["note"] == NOTE
        assert "note: first try, with 50 % [bold]less[/bold] :smile:" in run.lines
    assert run_main(tmp_path, "--eval", *QUICK).report["note"] is None
