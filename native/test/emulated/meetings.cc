// What the lanes of a warp do together.
#include <algorithm>

#include "machine.h"

namespace emulated {
namespace {

uint32_t lanes_alive(const Warp& warp) {
  uint32_t alive = 0;
  for (int l = 0; l < warp.count; ++l) alive |= static_cast<uint32_t>(warp.threads[l].state != State::kDone) << l;
  return alive;
}

// Those that have ended are not waited for.
bool is_complete(const Meeting& meeting, uint32_t alive) { return (meeting.mask & alive & ~meeting.arrived) == 0; }

void end_meeting(Warp& warp, std::vector<Meeting>::iterator meeting) {
  const Meeting ended = *meeting;
  warp.meetings.erase(meeting);
  (*ended.run)(ended.brought, ended.arrived);
  for (int l = 0; l < warp.count; ++l) {
    Thread& thread = warp.threads[l];
    if ((ended.arrived >> l & 1) == 0 || thread.state != State::kWaiting) continue;
    thread.state = State::kReady;
    ++warp.ready;
  }
}

}  // namespace

void meet(uint32_t mask, const void* tag, void* mine, const Run& run, const char* name) {
  Thread& thread = current();
  Warp& warp = *thread.warp;
  const uint32_t bit = 1u << thread.lane;
  if ((mask & bit) == 0) fault(std::string(name) + " without its own lane");
  auto meeting = std::find_if(warp.meetings.begin(), warp.meetings.end(), [&](const Meeting& m) {
    return m.mask == mask && m.tag == tag && (m.arrived & bit) == 0;
  });
  if (meeting == warp.meetings.end()) meeting = warp.meetings.insert(meeting, {mask, 0, tag, &run, {}});
  meeting->arrived |= bit;
  meeting->brought[thread.lane] = mine;
  if (is_complete(*meeting, lanes_alive(warp))) {
    end_meeting(warp, meeting);
  } else {
    wait(name, mask);
  }
}

void leave_meetings(Warp& warp) {
  const uint32_t alive = lanes_alive(warp);
  while (true) {
    const auto meeting = std::find_if(warp.meetings.begin(), warp.meetings.end(),
                                      [&](const Meeting& m) { return is_complete(m, alive); });
    if (meeting == warp.meetings.end()) return;
    end_meeting(warp, meeting);
  }
}

}  // namespace emulated
