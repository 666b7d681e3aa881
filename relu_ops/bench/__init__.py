"""Times operators side by side: in one process, interleaved, medians over many samples."""
