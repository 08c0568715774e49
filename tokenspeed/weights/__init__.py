"""Where weights come from: checkpoints, random ones, the small model that ships."""
