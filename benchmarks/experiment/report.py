"""placeholder"""


def write_report(results, folder, console):
    pass
