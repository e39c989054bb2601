"""report.html, a page on a workdir, and the comparison of several workdirs."""
