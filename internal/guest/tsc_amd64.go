package guest

// readTSC reads the time stamp counter.
func readTSC() uint64
