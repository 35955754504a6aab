// SPDX-License-Identifier: Apache-2.0
// What may fail on one rank alone (a file, memory, a setting) is done under agree(): either all ranks go on, or all
// throw the same error, so that none is left waiting in a collective and the user reads one line, not one per rank.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "comm/communicator.h"
#include "runtime/check.h"

namespace pkmesh {

// A UserError that every rank throws; rank 0 prints it.
class AgreedError : public UserError {
 public:
  using UserError::UserError;
};

// Calls work() on every rank. If any threw a UserError, all throw AgreedError with the words of the lowest such rank.
// work() must not call collectives. Other exceptions pass through: they end the job.
void agree(Communicator& world, const std::function<void()>& work);

// The root's text, on every rank.
std::string broadcast_text(Communicator& world, int root, std::string text);

// Throws AgreedError on all ranks unless `text` is the same on all of them; `what` names it: "configuration". The words
// show the first line that differs.
void agree_on(Communicator& world, std::string_view what, std::string_view text);

}  // namespace pkmesh
