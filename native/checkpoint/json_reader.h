// Reads JSON text from front to back in linear time, keeping what JavaScript's parser loses: integers above 2^53, the
// difference between 1 and 1.0, and repeated keys (the caller sees each). Nothing recurses and nothing is allocated but
// the strings asked for. Text must be valid UTF-8: check with is_utf8 first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace espalier {

// Whether the bytes are well-formed UTF-8 (no overlong forms, no surrogates, nothing above U+10FFFF).
bool is_utf8(std::string_view bytes);

class JsonReader {
 public:
  // Values nested deeper than this are malformed.
  static constexpr int kMaxDepth = 128;

  struct Number {
    std::string_view text;
    bool is_integer = false;  // digits only: no sign, fraction or exponent
    bool fits = false;        // is_integer and at most 2^64 - 1
    uint64_t value = 0;       // when fits
  };

  explicit JsonReader(std::string_view text) : text_(text) {}

  // Every function below skips white space first. Those that return bool give false when the text is malformed, and
  // problem() then says what was expected; the reader must not be used further.

  // The next character, or 0 at the end.
  char peek();
  // Takes the next character if it is `c`.
  bool take(char c);
  bool read_string(std::string* out);
  bool read_number(Number* out);
  // Skips one value of any kind.
  bool skip_value();

  size_t position() const { return position_; }
  const char* problem() const { return problem_; }

 private:
  bool fail(const char* problem);
  void skip_space();
  bool skip_literal();
  bool skip_scalar();
  bool read_escape(std::string* out);
  bool read_hex4(uint32_t* out);

  std::string_view text_;
  size_t position_ = 0;
  const char* problem_ = "";
};

}  // namespace espalier
