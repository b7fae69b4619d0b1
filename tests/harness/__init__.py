"""The test harness: the real engine on fake files under virtual time, and the real process over real HTTP."""
