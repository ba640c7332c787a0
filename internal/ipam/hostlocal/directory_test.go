package hostlocal

import (
	"testing"
	"time"
)

// A file that has just changed may change again without looking any different.
func TestStampIsSettledWhenTheClockHasTicked(t *testing.T) {
	now := time.Unix(1_800_000_000, 500_000_000)
	whole := now.Truncate(time.Second)
	for _, tc := range []struct {
		what    string
		changed time.Time
		local   bool
		want    bool
	}{
		{"this moment", now, true, false},
		{"one step of the kernel's clock ago", now.Add(-localStep), true, false},
		{"a little longer ago", now.Add(-localStep - 1), true, true},
		{"that, on another machine", now.Add(-localStep - 1), false, false},
		{"long ago, on another machine", now.Add(-clockStep - 1), false, true},
		{"a whole second, where there may be no others", whole, true, false},
		{"a whole second, long ago", whole.Add(-clockStep), true, true},
		{"tomorrow, by a clock that was set back", now.Add(24 * time.Hour), true, false},
	} {
		s := stamp{changed: tc.changed.UnixNano()}
		if got := s.settled(now, tc.local); got != tc.want {
			t.Errorf("%s: settled is %v, want %v", tc.what, got, tc.want)
		}
	}
}
