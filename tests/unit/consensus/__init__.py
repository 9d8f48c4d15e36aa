"""The consensus core, alone and in clusters in memory."""
