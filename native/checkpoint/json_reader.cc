#include "checkpoint/json_reader.h"

#include <array>

namespace espalier {
namespace {

bool is_digit(char c) { return c >= '0' && c <= '9'; }

void append_utf8(std::string* out, uint32_t point) {
  const auto push = [out](uint32_t byte) { out->push_back(static_cast<char>(byte)); };
  if (point < 0x80) {
    push(point);
  } else if (point < 0x800) {
    push(0xc0 | point >> 6);
    push(0x80 | (point & 0x3f));
  } else if (point < 0x10000) {
    push(0xe0 | point >> 12);
    push(0x80 | (point >> 6 & 0x3f));
    push(0x80 | (point & 0x3f));
  } else {
    push(0xf0 | point >> 18);
    push(0x80 | (point >> 12 & 0x3f));
    push(0x80 | (point >> 6 & 0x3f));
    push(0x80 | (point & 0x3f));
  }
}

}  // namespace

bool is_utf8(std::string_view bytes) {
  size_t i = 0;
  while (i < bytes.size()) {
    const auto lead = static_cast<unsigned char>(bytes[i++]);
    if (lead < 0x80) continue;
    const int rest = lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1;
    if (lead < 0xc2 || lead > 0xf4 || bytes.size() - i < static_cast<size_t>(rest)) return false;
    uint32_t point = lead & (0x3f >> rest);
    for (int k = 0; k < rest; ++k) {
      const auto byte = static_cast<unsigned char>(bytes[i++]);
      if ((byte & 0xc0) != 0x80) return false;
      point = point << 6 | (byte & 0x3f);
    }
    constexpr std::array<uint32_t, 4> kSmallest = {0, 0x80, 0x800, 0x10000};
    if (point < kSmallest[rest] || point > 0x10ffff || (point >= 0xd800 && point < 0xe000)) return false;
  }
  return true;
}

bool JsonReader::fail(const char* problem) {
  problem_ = problem;
  return false;
}

void JsonReader::skip_space() {
  while (position_ < text_.size()) {
    const char c = text_[position_];
    if (c != ' ' && c != '\n' && c != '\r' && c != '\t') return;
    ++position_;
  }
}

char JsonReader::peek() {
  skip_space();
  return position_ < text_.size() ? text_[position_] : '\0';
}

bool JsonReader::take(char c) {
  skip_space();
  if (position_ == text_.size() || text_[position_] != c) return false;
  ++position_;
  return true;
}

bool JsonReader::read_string(std::string* out) {
  out->clear();
  if (!take('"')) return fail("a string was expected");
  while (position_ < text_.size()) {
    const size_t start = position_;
    while (position_ < text_.size() && text_[position_] != '"' && text_[position_] != '\\' &&
           static_cast<unsigned char>(text_[position_]) >= 0x20) {
      ++position_;
    }
    out->append(text_.substr(start, position_ - start));
    if (position_ == text_.size()) break;
    const char c = text_[position_];
    if (c == '"') {
      ++position_;
      return true;
    }
    if (c != '\\') return fail("a control character stands in a string");
    ++position_;
    if (!read_escape(out)) return false;
  }
  return fail("a string does not end");
}

bool JsonReader::read_escape(std::string* out) {
  if (position_ == text_.size()) return fail("a string does not end");
  const char c = text_[position_++];
  switch (c) {
    case '"':
    case '\\':
    case '/': out->push_back(c); return true;
    case 'b': out->push_back('\b'); return true;
    case 'f': out->push_back('\f'); return true;
    case 'n': out->push_back('\n'); return true;
    case 'r': out->push_back('\r'); return true;
    case 't': out->push_back('\t'); return true;
    case 'u': break;
    default: return fail("an unknown escape stands in a string");
  }
  uint32_t unit;
  if (!read_hex4(&unit)) return false;
  if (unit < 0xd800 || unit >= 0xe000) {
    append_utf8(out, unit);
    return true;
  }
  uint32_t low;
  if (unit >= 0xdc00 || text_.substr(position_, 2) != "\\u") return fail("half of a surrogate pair stands in a string");
  position_ += 2;
  if (!read_hex4(&low)) return false;
  if (low < 0xdc00 || low >= 0xe000) return fail("half of a surrogate pair stands in a string");
  append_utf8(out, 0x10000 + ((unit - 0xd800) << 10) + (low - 0xdc00));
  return true;
}

bool JsonReader::read_hex4(uint32_t* out) {
  *out = 0;
  if (text_.size() - position_ < 4) return fail("a string does not end");
  for (int i = 0; i < 4; ++i) {
    const char c = text_[position_++];
    uint32_t digit;
    if (is_digit(c)) {
      digit = static_cast<uint32_t>(c - '0');
    } else if ((c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F')) {
      digit = static_cast<uint32_t>((c | 0x20) - 'a') + 10;
    } else {
      return fail("an escape needs four hexadecimal digits");
    }
    *out = *out << 4 | digit;
  }
  return true;
}

bool JsonReader::read_number(Number* out) {
  *out = {};
  skip_space();
  const size_t start = position_;
  const auto at_digit = [this] { return position_ < text_.size() && is_digit(text_[position_]); };
  const auto at = [this](char c) { return position_ < text_.size() && text_[position_] == c; };
  bool is_integer = true;
  if (at('-')) {
    is_integer = false;
    ++position_;
  }
  if (!at_digit()) return fail("a number was expected");
  const bool leading_zero = at('0');
  uint64_t value = 0;
  bool fits = true;
  const size_t first = position_;
  for (; at_digit(); ++position_) {
    fits = fits && !__builtin_mul_overflow(value, uint64_t{10}, &value) &&
           !__builtin_add_overflow(value, static_cast<uint64_t>(text_[position_] - '0'), &value);
  }
  if (leading_zero && position_ - first > 1) return fail("a number starts with 0");
  if (at('.')) {
    is_integer = false;
    ++position_;
    if (!at_digit()) return fail("a number ends in a point");
    while (at_digit()) ++position_;
  }
  if (at('e') || at('E')) {
    is_integer = false;
    ++position_;
    if (at('+') || at('-')) ++position_;
    if (!at_digit()) return fail("an exponent has no digits");
    while (at_digit()) ++position_;
  }
  *out = {text_.substr(start, position_ - start), is_integer, is_integer && fits, fits ? value : 0};
  return true;
}

bool JsonReader::skip_literal() {
  for (const std::string_view word : {"true", "false", "null"}) {
    if (text_.substr(position_, word.size()) == word) {
      position_ += word.size();
      return true;
    }
  }
  return fail("a value was expected");
}

bool JsonReader::skip_scalar() {
  const char c = peek();
  if (c == '"') {
    std::string ignored;
    return read_string(&ignored);
  }
  if (c == '-' || is_digit(c)) {
    Number ignored;
    return read_number(&ignored);
  }
  return skip_literal();
}

bool JsonReader::skip_value() {
  std::array<char, kMaxDepth> closers;
  int depth = 0;
  std::string key;
  // Reads a key and its colon where the innermost open container is an object.
  const auto read_key = [&] {
    if (closers[depth - 1] != '}') return true;
    return read_string(&key) && (take(':') || fail("a colon was expected"));
  };
  do {
    const char c = peek();
    if (c == '{' || c == '[') {
      if (depth == kMaxDepth) return fail("values are nested more than 128 deep");
      ++position_;
      closers[depth++] = c == '{' ? '}' : ']';
      if (!take(closers[depth - 1])) {
        if (!read_key()) return false;
        continue;
      }
      --depth;
    } else if (!skip_scalar()) {
      return false;
    }
    while (depth > 0 && take(closers[depth - 1])) --depth;
    if (depth > 0) {
      if (!take(',')) return fail("a comma or a closing bracket was expected");
      if (!read_key()) return false;
    }
  } while (depth > 0);
  return true;
}

}  // namespace espalier
