"""The documents as they stand: sessions are typed, programs run, workers killed."""
