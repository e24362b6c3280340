"""Tables, figures and HTML pages of runs and studies; inspection of data and schedules."""
