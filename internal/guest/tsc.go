package guest

import "time"

// measureTSC returns the rate of this machine's time stamp counter in kHz, to
// better than a thousandth, or 0 where there is none to be read. It takes 20 ms.
// QEMU's emulated processor reads that counter for the guest's.
func measureTSC() int {
	const span = 20 * time.Millisecond
	from, fromTicks := clocks()
	time.Sleep(span)
	to, toTicks := clocks()
	if toTicks <= fromTicks {
		return 0
	}
	return int((toTicks - fromTicks) * uint64(time.Millisecond) / uint64(to.Sub(from)))
}

// clocks reads the time and the counter at one moment: it takes the quickest of
// some readings, the one in which this thread kept its processor.
func clocks() (now time.Time, ticks uint64) {
	quickest := ^uint64(0)
	for range 20 {
		before := readTSC()
		t := time.Now()
		if took := readTSC() - before; took < quickest {
			now, ticks, quickest = t, before+took/2, took
		}
	}
	return now, ticks
}
