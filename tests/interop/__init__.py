"""flanneld-py beside flannel's own daemon: `make interop FLANNELD=/path/to/flanneld`.

    test_mixed.py       clusters of both, on every backend that both have: who reaches whom, joins, leaves, returns
    test_takeover.py    a host taken over in place, there and back, under a ping
    test_questions.py   the same configs, flags and environments asked of both (questions.py); each difference is
                        one that is expected, with its reason (differences.py)
    test_functional.py  flannel's own functional suite with our daemon: FLANNEL_SOURCE=/path/to/checkout, also alone

flannel's daemon is not part of this project, so `make test` does not collect this folder. At the end there is a table,
and the same as JSON in results/.
"""
