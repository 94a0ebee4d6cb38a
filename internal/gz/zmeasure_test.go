package gz_test

import (
	"bytes"
	stdgzip "compress/gzip"
	"fmt"
	"github.com/klauspost/compress/flate"
	"os"
	"testing"
	"time"
)

func TestMeasure(t *testing.T) {
	if os.Getenv("MEASURE") == "" {
		t.Skip()
	}
	data := map[string][]byte{"text": logText(96 << 20)}
	for _, n := range []string{"bin", "share"} {
		b, _ := os.ReadFile("/tmp/gzdata/" + n + ".tar")
		if len(b) > 96<<20 {
			b = b[len(b)-96<<20:]
		}
		data[n] = b
	}
	for _, name := range []string{"text", "bin", "share"} {
		d := data[name]
		var o bytes.Buffer
		t0 := time.Now()
		w, _ := stdgzip.NewWriterLevel(&o, 6)
		w.Write(d)
		w.Close()
		std := o.Len()
		fmt.Printf("%s %d std6 %d %.0f MB/s\n", name, len(d), std, float64(len(d))/1e6/time.Since(t0).Seconds())
		for _, lv := range []int{5, 6, 7, 8} {
			for _, bs := range []int{512 << 10, 1 << 20, 2 << 20} {
				if bs != 1<<20 && lv != 6 && lv != 7 {
					continue
				}
				o.Reset()
				t0 = time.Now()
				fw, _ := flate.NewWriter(&o, lv)
				for i := 0; i < len(d); i += bs {
					fw.Reset(&o)
					fw.Write(d[i:min(len(d), i+bs)])
					fw.Flush()
				}
				fmt.Printf("  lv%d bs%dK %+.2f%% %.0f MB/s\n", lv, bs>>10, 100*float64(o.Len()-std)/float64(std), float64(len(d))/1e6/time.Since(t0).Seconds())
			}
		}
	}
}
