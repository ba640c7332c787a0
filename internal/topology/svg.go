package topology

import (
	"fmt"
	"html"
	"slices"
	"strings"
)

// Sizes of the drawing in SVG user units.
const (
	margin      = 24
	labelWidth  = 190 // room for the names of the networks, left of everything
	ifaceWidth  = 124
	podHeight   = 92
	nodeTop     = 56
	nodePadding = 16
	nodeHeader  = 30
	gap         = 14
	busSpacing  = 44
	minWidth    = 640
)

// palette colours the networks in order; the first, grey, is for the default
// network, which nearly every pod is on.
var palette = [...]string{"#6b7280", "#2563eb", "#d97706", "#059669", "#db2777", "#7c3aed", "#0891b2", "#65a30d"}

// SVG draws each node as a box with its pods, and each network as a line below
// them that the interfaces on it are connected to.
func (v View) SVG() string {
	d := drawing{networks: v.Networks()}
	d.busTop = nodeTop + nodeHeader + podHeight + 2*nodePadding + 2*gap
	x := margin + labelWidth
	for _, n := range v.Nodes {
		x += d.node(x, n) + 2*gap
	}
	width := max(x-2*gap+margin, minWidth)
	height := d.busTop + len(d.networks)*busSpacing + margin

	var out strings.Builder
	fmt.Fprintf(&out, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %[1]d %[2]d" font-family="DejaVu Sans, Helvetica, Arial, sans-serif">`+"\n", width, height)
	fmt.Fprintf(&out, `<rect width="%d" height="%d" fill="#ffffff"/>`+"\n", width, height)
	fmt.Fprintf(&out, `<text x="%d" y="34" font-size="18" font-weight="bold" fill="#111827">Pods and their networks</text>`+"\n", margin)
	for i, name := range d.networks {
		d.bus(&out, i, name, width-margin)
	}
	out.WriteString(d.drops.String()) // lines first, boxes over them
	out.WriteString(d.boxes.String())
	out.WriteString("</svg>\n")
	return out.String()
}

// drawing collects the parts of one SVG in two layers.
type drawing struct {
	networks     []string
	busTop       int
	drops, boxes strings.Builder
}

func (d *drawing) color(network int) string { return palette[network%len(palette)] }

func (d *drawing) busY(network int) int { return d.busTop + network*busSpacing + busSpacing/2 }

func (d *drawing) bus(out *strings.Builder, i int, name string, right int) {
	y := d.busY(i)
	fmt.Fprintf(out, `<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="%s" stroke-width="4" stroke-linecap="round"/>`+"\n", margin+labelWidth-gap, y, right, y, d.color(i))
	text(out, margin, y+4, 13, d.color(i), "start", name)
}

// node draws n with its left edge at x and returns its width.
func (d *drawing) node(x int, n Node) int {
	width := nodePadding
	for _, p := range n.Pods {
		width += podWidth(p) + gap
	}
	width += nodePadding - gap
	fmt.Fprintf(&d.boxes, `<rect x="%d" y="%d" width="%d" height="%d" rx="8" fill="none" stroke="#9ca3af" stroke-dasharray="6 4"/>`+"\n",
		x, nodeTop, width, nodeHeader+podHeight+2*nodePadding-8)
	text(&d.boxes, x+nodePadding, nodeTop+22, 14, "#374151", "start", "node "+n.Name)
	px := x + nodePadding
	for _, p := range n.Pods {
		d.pod(px, p)
		px += podWidth(p) + gap
	}
	return width
}

func podWidth(p Pod) int { return max(len(p.Interfaces), 1)*ifaceWidth + gap }

func (d *drawing) pod(x int, p Pod) {
	top := nodeTop + nodeHeader + nodePadding/2
	fmt.Fprintf(&d.boxes, `<rect x="%d" y="%d" width="%d" height="%d" rx="6" fill="#f3f4f6" stroke="#6b7280"/>`+"\n", x, top, podWidth(p), podHeight)
	text(&d.boxes, x+podWidth(p)/2, top+22, 14, "#111827", "middle", p.Namespace+"/"+p.Name)
	for i, iface := range p.Interfaces {
		d.iface(x+gap/2+i*ifaceWidth, top+36, iface)
	}
}

func (d *drawing) iface(x, y int, i Interface) {
	network := slices.Index(d.networks, i.Network)
	mid, width, height := x+ifaceWidth/2, ifaceWidth-8, podHeight-44
	fmt.Fprintf(&d.drops, `<line x1="%d" y1="%d" x2="%d" y2="%d" stroke="%s" stroke-width="2"/>`+"\n", mid, y+height, mid, d.busY(network), d.color(network))
	fmt.Fprintf(&d.drops, `<circle cx="%d" cy="%d" r="5" fill="%s"/>`+"\n", mid, d.busY(network), d.color(network))
	fmt.Fprintf(&d.boxes, `<rect x="%d" y="%d" width="%d" height="%d" rx="4" fill="#ffffff" stroke="%s" stroke-width="2"/>`+"\n", x+4, y, width, height, d.color(network))
	text(&d.boxes, mid, y+18, 12, "#111827", "middle", i.Name)
	address := "no address"
	if len(i.IPs) > 0 {
		address = i.IPs[0]
	}
	if len(i.IPs) > 1 {
		address += fmt.Sprintf(" +%d", len(i.IPs)-1)
	}
	text(&d.boxes, mid, y+36, 12, "#374151", "middle", address)
}

func text(out *strings.Builder, x, y, size int, color, anchor, s string) {
	fmt.Fprintf(out, `<text x="%d" y="%d" font-size="%d" fill="%s" text-anchor="%s">%s</text>`+"\n", x, y, size, color, anchor, html.EscapeString(s))
}
