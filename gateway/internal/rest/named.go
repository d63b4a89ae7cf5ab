package rest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// read reads JSON into a message. Its errors are protojson's, with the field that is wrong as the client wrote it: protojson itself names it
// "timeoutSec", and whatever is wrong in a map "value".
func read(b []byte, m proto.Message) error {
	if err := unmarshal.Unmarshal(b, m); err != nil {
		return errors.New(withField(b, m.ProtoReflect().Descriptor(), plain(err.Error())))
	}
	return nil
}

// plain is protojson's message without what varies by build.
func plain(message string) string {
	return strings.TrimPrefix(strings.ReplaceAll(message, "\u00a0", " "), "proto: ")
}

var (
	placeIn   = regexp.MustCompile(`^(.*)\(line (\d+):(\d+)\): `)
	valueOf   = regexp.MustCompile(`^invalid value for (\w+) field \w+: `)
	unknownIn = regexp.MustCompile(`^unknown field "`)
)

// withField puts `field "path": ` before a message about a part of b, which malformed takes off.
func withField(b []byte, of protoreflect.MessageDescriptor, message string) string {
	place := placeIn.FindStringSubmatch(message)
	if place == nil || !json.Valid(b) || !utf8.Valid(b) {
		return message
	}
	line, _ := strconv.Atoi(place[2]) // Digits, as is the next.
	column, _ := strconv.Atoi(place[3])
	path := pathAt(b, offsetOf(b, line, column))
	if len(path) == 0 {
		return message
	}
	said := valueOf.ReplaceAllString(message[len(place[0]):], "must be of type $1, got ")
	if unknownIn.MatchString(said) {
		said = "is not known here" + legal(of, path[:len(path)-1])
	}
	return fmt.Sprintf("field %q: %s (line %d:%d)", strings.Join(path, "."), said, line, column)
}

// cutField takes the field off that withField has put before a message.
func cutField(message string) (path, rest string, ok bool) {
	quoted, ok := strings.CutPrefix(message, "field ")
	if !ok {
		return "", "", false
	}
	q, err := strconv.QuotedPrefix(quoted)
	if err != nil {
		return "", "", false
	}
	path, err = strconv.Unquote(q)
	return path, strings.TrimPrefix(quoted[len(q):], ": "), err == nil
}

// parsedIn is Go's message about a number or truth value in a query.
var parsedIn = regexp.MustCompile(`^strconv\.Parse(Uint|Int|Float|Bool): parsing (".*"): [a-z ]+$`)

// wanted says what is wanted in place of what could not be parsed.
func wanted(message string) string {
	m := parsedIn.FindStringSubmatch(message)
	if m == nil {
		return message
	}
	kind := map[string]string{"Uint": "a whole number from 0 on", "Int": "a whole number", "Float": "a number", "Bool": "true or false"}[m[1]]
	return "must be " + kind + ", got " + m[2]
}

// legal lists the fields of the message at a path below of.
func legal(of protoreflect.MessageDescriptor, path []string) string {
	for _, name := range path {
		f := of.Fields().ByTextName(snake(name))
		if f == nil || f.Message() == nil || f.IsMap() {
			return ""
		}
		of = f.Message()
	}
	var names []string
	for i := range of.Fields().Len() {
		names = append(names, of.Fields().Get(i).TextName())
	}
	if len(names) == 0 {
		return "; there are no fields"
	}
	return "; known are " + strings.Join(names, ", ")
}

// offsetOf is where a line and a column begin, both counted from 1, columns in characters.
func offsetOf(b []byte, line, column int) int {
	at := 0
	for ; line > 1; line-- {
		at += bytes.IndexByte(b[at:], '\n') + 1
	}
	for ; column > 1 && at < len(b); column-- {
		_, size := utf8.DecodeRune(b[at:])
		at += size
	}
	return at
}

// pathAt are the keys that lead to the token of valid JSON at an offset, its own among them if it is one. Lists have none.
func pathAt(b []byte, offset int) []string {
	type level struct {
		object, hasKey bool
		key            string
	}
	var levels []level
	keys := func() (out []string) {
		for _, l := range levels {
			if l.hasKey {
				out = append(out, l.key)
			}
		}
		return out
	}
	for dec := json.NewDecoder(bytes.NewReader(b)); ; {
		token, err := dec.Token()
		if err != nil {
			return nil
		}
		top := len(levels) - 1
		delim, _ := token.(json.Delim)
		if key, ok := token.(string); ok && top >= 0 && levels[top].object && !levels[top].hasKey {
			levels[top].key, levels[top].hasKey = key, true
			if dec.InputOffset() > int64(offset) {
				return keys()
			}
			continue
		}
		if dec.InputOffset() > int64(offset) {
			return keys()
		}
		switch delim {
		case '{', '[':
			levels = append(levels, level{object: delim == '{'})
			continue
		case '}', ']':
			levels = levels[:top]
			top--
		}
		if top >= 0 {
			levels[top].hasKey = false // The value is over.
		}
	}
}
