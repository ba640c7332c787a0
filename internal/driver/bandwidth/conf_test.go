package bandwidth

import (
	"testing"

	"braid.dev/braid/internal/driver"
)

func FuzzParse(f *testing.F) {
	for _, seed := range []string{
		`{"ingressRate":8000,"ingressBurst":8000,"egressRate":9,"egressBurst":9}`,
		`{"ingressRate":0,"runtimeConfig":{"bandwidth":{"egressRate":8000,"egressBurst":8000}}}`,
		`{"runtimeConfig":{"bandwidth":{"ingressRate":18446744073709551615,"ingressBurst":34359738359}}}`,
		`{"ingressRate":null,"ingressBurst":1e3}`, `[]`, `{`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parse(driver.Spec{Conf: []byte(text), IfName: "net1"})
		if err != nil {
			return
		}
		if c.ingress != nil && (c.ingress.Rate == 0 || c.ingress.Burst == 0) || c.egress != nil && (c.egress.Rate == 0 || c.egress.Burst == 0) {
			t.Errorf("%s: a limit of nothing: %+v %+v", text, c.ingress, c.egress)
		}
	})
}
