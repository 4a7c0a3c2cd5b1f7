"""The AWS Load Balancer Controller (LBC) beside weir: the same Services, and what AWS then has for each of them.

controller      LBC as a process
manifests       the Services, and what they need of an account
facts           what AWS has for a Service, read back by a client of its own, as path and value
differences     where the two are meant to differ, and why
comparison      facts of both against that list: equal, deliberate, unexpected
tests/compare_lbc.py puts them together
"""
