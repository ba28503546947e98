"""Every way in which a large model can fail, against `ask`'s own parts.

A case is one line of a table: what the server does on its bare socket, and what became of the span. The
oracle (`sr_edge.testing.oracle`) asserts all the rest, for each case the same ten invariants. The numbers
F01 to F78 name the kinds of faults; `harness` holds what the tables share.

    test_connection   F01-F10   no connection, or not the right one
    test_http         F11-F28   refusals, redirects, sizes, framing
    test_stream       F29-F54   what is in the stream, and where it is cut
    test_sse_sweep    F29-F33   framing, cut at every byte
    test_torture                each fallible call fails once, in five ways
    test_real_model             a sample of all of these, with the built-in small model: the KV invariant
    test_command                a sample of all of these, by `sr-edge ask` in a process of its own
    test_files        F65-F66   full disks, read-only ones, and two processes at once
    test_terminal     F69-F73   what reaches a terminal
    test_hostile      F71-F76   text that wants to be more than text
    test_offline      F77-F78   no sockets, under strace and without a network
    test_interrupt    F62       Ctrl-C in each phase
    test_outside_judge          llmock's opinion

No test sleeps for more than 0.3 s. At the end of a run in one process (`pytest tests/faults`) the tally is
printed: cases, false completes, times.
"""

from tests.faults.harness import TALLY


def pytest_terminal_summary(terminalreporter):
    if TALLY.cases or TALLY.split_executions:
        terminalreporter.section("faults")
        for line in TALLY.lines():
            terminalreporter.write_line(line)
