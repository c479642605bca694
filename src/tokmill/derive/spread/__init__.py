"""Work on outputs that many machines share: tasks, what they leave on the disk, and where it goes."""
