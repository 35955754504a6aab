// SPDX-License-Identifier: Apache-2.0
// The program. It owns the ranks, reads the command line, and turns every error into one line and an exit code:
// 0 done, 2 what the user can mend (nothing was written, unless a run was under way), 1 anything else.
#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <malloc.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cctype>
#include <charconv>
#include <csignal>
#include <cstdio>
#include <limits>
#include <type_traits>
#include <utility>

#include "comm/agree.h"
#include "comm/mpi.h"
#include "io/config.h"
#include "io/config_schema.h"
#include "io/run_folder.h"
#include "launcher/commands.h"
#include "launcher/threads.h"
#include "runtime/cpu.h"
#include "runtime/log.h"

namespace pkmesh {
namespace {

// CLI11's Range takes 0100 for 64, lets nan pass, and has other words for its limits.
template <class T = int64_t>
CLI::Validator whole_number(std::type_identity_t<T> min, std::type_identity_t<T> max = std::numeric_limits<T>::max()) {
  const std::string range = std::cmp_equal(max, std::numeric_limits<int64_t>::max())
                                ? fmt::format("of at least {}", min)
                                : fmt::format("from {} to {}", min, max);
  return {[=](const std::string& text) {
            T number = 0;
            std::from_chars(text.data(), text.data() + text.size(), number);
            const bool good = std::to_string(number) == text && number >= min && number <= max;
            return good ? "" : fmt::format("{} is not a whole number {}", text, range);
          },
          range};
}

CLI::Validator number(double min, double max) {
  const std::string range = fmt::format("from {} to {}", min, max);
  return {[=](const std::string& text) {
            double number = 0;
            const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
            const bool good =
                error == std::errc() && end == text.data() + text.size() && number >= min && number <= max;
            return good ? "" : fmt::format("{} is not a number {}", text, range);
          },
          range};
}

// Takes what is given as it is: one value, or with `many` more. Otherwise CLI11 takes all values that follow, and [a,b]
// for two.
CLI::Option* verbatim(CLI::Option* option, bool many = false) {
  constexpr int kMany = 1 << 24;  // more would be "any number", which is read in that way
  return option->expected(1, many ? kMany : 1)->allow_extra_args(false)->take_all();
}

void add_config_options(CLI::App& command, ConfigSource& source, bool required) {
  command.add_option("--config", source.config, "Configuration: a file, or a preset such as debug or quickstart")
      ->required(required);
  verbatim(command.add_option("--set", source.overrides,
                              "Overrides one option: train.steps=100 (may be repeated; the last one counts)"));
}

// What the command line asks for; set up by add_commands, run once the ranks stand.
using Action = std::function<int(Communicator&)>;

struct Options {
  TokenizeArguments tokenize;
  TrainArguments train;
  EvalArguments eval;
  GenerateArguments generate;
  std::vector<std::string> inspect;
  std::string option;
  bool markdown = false;
  BenchArguments bench;
};

void add_tokenize(CLI::App& app, TokenizeArguments& options, Action& action) {
  auto* command = app.add_subcommand("tokenize", "Turn text into a tokenizer and token files");
  verbatim(command->add_option("--input", options.inputs, "Text files, plain or gzipped; - is standard input"),
           /*many=*/true)
      ->required();
  command->add_option("--out", options.out, "Folder to write: a new or an empty one")->required();
  command->add_option("--tokenizer", options.tokenizer, "Folder whose tokenizer to use (default: train one)");
  command->add_option("--threads", options.threads, "Threads (default: all cores)")->check(whole_number(1, 1024));
  add_config_options(*command, options.source, false);
  command->callback([&] { action = [&](Communicator& world) { return tokenize_command(world, options); }; });
}

void add_train(CLI::App& app, TrainArguments& options, Action& action) {
  auto* command = app.add_subcommand("train", "Train a model; under mpirun, on all its ranks");
  add_config_options(*command, options.source, false);
  command->add_option("--out", options.out, "Run folder: a new or an empty one, unless --resume is given");
  command->add_option(
      "--resume", options.resume,
      "Go on from the newest checkpoint of --out (auto), or from this one; --config may then be left out");
  command->add_flag("--profile", options.profile, "End with a table of what communication cost, and write a trace");
  auto* dry_run = command->add_flag("--dry-run", options.dry_run, "Print the memory plan per rank and stop");
  auto* ranks = command->add_option("--ranks", options.ranks, "Ranks to plan for (default: those that were started)");
  ranks->check(whole_number(1, 1 << 20))->needs(dry_run);
  command->add_option("--hosts", options.hosts, "Hosts that they are on (default: one)")
      ->check(whole_number(1, 1 << 20))
      ->needs(ranks);
  command->add_flag("--print-config", options.print_config, "Print the complete configuration and stop")
      ->excludes(dry_run);
  command->callback([&] { action = [&](Communicator& world) { return train_command(world, options); }; });
}

void add_eval(CLI::App& app, EvalArguments& options, Action& action) {
  auto* command = app.add_subcommand("eval", "Perplexity and memory health of a checkpoint");
  command->add_option("--checkpoint", options.checkpoint, "A checkpoint, or a run folder (its newest one)")->required();
  command->add_option("--data", options.data, "Token folder (default: the run's validation data)");
  command->add_option("--sequences", options.sequences, "The first so many sequences only (default, and 0: all)")
      ->check(whole_number(0));
  command->callback([&] { action = [&](Communicator& world) { return eval_command(world, options); }; });
}

void add_generate(CLI::App& app, GenerateArguments& options, Action& action) {
  auto* command = app.add_subcommand("generate", "Continue a prompt");
  command->add_option("--checkpoint", options.checkpoint, "A checkpoint, or a run folder (its newest one)")->required();
  verbatim(command->add_option("--prompt", options.prompts, "Text to continue (may be repeated)"))->required();
  command->add_option("--tokens", options.tokens, "Tokens to generate")
      ->check(whole_number(1, 1000000))
      ->capture_default_str();
  command->add_option("--temperature", options.temperature, "0 takes the likeliest token")
      ->check(number(0, 100))
      ->capture_default_str();
  command->add_option("--top-p", options.top_p, "Draw from the likeliest tokens that hold this share")
      ->check(number(1e-6, 1))
      ->capture_default_str();
  command->add_option("--seed", options.seed, "Seed of the draws")
      ->check(whole_number<uint64_t>(0))
      ->capture_default_str();
  command->callback([&] { action = [&](Communicator& world) { return generate_command(world, options); }; });
}

void add_others(CLI::App& app, Options& options, Action& action) {
  auto* inspect = app.add_subcommand("inspect", "Describe a run folder, a checkpoint or a configuration; compare runs");
  inspect->add_option("path", options.inspect, "Run folders, or a checkpoint, configuration file or preset")
      ->required();
  inspect->callback([&] { action = [&](Communicator& world) { return inspect_command(world, options.inspect); }; });

  auto* bench = app.add_subcommand("bench", "Measure this machine and the program on it");
  bench->add_option("name", options.bench.name, fmt::format("{}", fmt::join(benchmark_names(), ", ")))
      ->required()
      ->check(CLI::IsMember(benchmark_names()));
  bench->add_option("--repeats", options.bench.repeats, "Repetitions of each measurement")
      ->check(whole_number(1, 10000));
  bench->add_option("--json", options.bench.json, "New file for the figures");
  add_config_options(*bench, options.bench.source, false);
  bench->callback([&] { action = [&](Communicator& world) { return bench_command(world, options.bench); }; });

  auto* config = app.add_subcommand("config", "Explain the options of a configuration");
  config->add_option("option", options.option, "An option such as model.memory.heads; none: all of them");
  config->add_flag("--markdown", options.markdown, "All of them, as docs/configuration.md");
  config->callback([&] {
    action = [&](Communicator& world) {
      agree(world, [&] {
        if (world.rank() == 0) print_out(options.markdown ? configuration_markdown() : option_help(options.option));
      });
      return 0;
    };
  });
}

// An empty value is a variable that was not set: refused, or it would count as an option that was not given. So is an
// option in a value's place, where the variable stood without quotes. A prompt may be any text; the empty one is that
// without a beginning.
void refuse_absent_values(CLI::App& app) {
  for (CLI::App* command : app.get_subcommands(nullptr))
    for (CLI::Option* option : command->get_options()) {
      if (option->get_items_expected_max() == 0) continue;
      if (option->get_name() == "--prompt") continue;
      const auto absent = [=](const std::string& text) -> std::string {
        if (text.empty()) return "the value is empty";
        const bool is_option =
            text[0] == '-' && command->get_option_no_throw(text.substr(0, text.find('='))) != nullptr;
        return is_option ? fmt::format("its value is missing: {} is an option itself", text) : "";
      };
      option->transform(CLI::Validator(absent, ""));  // before its own checks
    }
}

// "--out=" as "--out" and "": CLI11 would take the argument that follows for the value.
std::vector<std::string> split_empty_values(const std::vector<std::string>& arguments) {
  std::vector<std::string> words;
  for (const std::string& argument : arguments) {
    const bool empty = argument.starts_with("--") && argument.find('=') == argument.size() - 1;
    words.push_back(empty ? argument.substr(0, argument.size() - 1) : argument);
    if (empty) words.emplace_back();
  }
  return words;
}

// An error is one line, whatever bytes the names in it have.
std::string one_line(std::string text) {
  std::ranges::replace_if(
      text, [](unsigned char c) { return std::iscntrl(c) != 0; }, '?');
  return text;
}

// The command's option that `word` may have been meant for, or nothing.
std::string nearest_option(const CLI::App& command, const std::string& word) {
  std::vector<std::string> names;
  for (const CLI::Option* option : command.get_options()) names.push_back(option->get_name());
  return word.starts_with("--") ? config::nearest(word.substr(0, word.find('=')), names) : "";
}

// One line for a command line that cannot be read, in our words where the library's would puzzle.
std::string complaint(const CLI::App& app, const std::vector<std::string>& arguments, const CLI::ParseError& error) {
  const auto chosen = app.get_subcommands();
  const std::string help = fmt::format("see pkmesh {}--help", chosen.empty() ? "" : chosen[0]->get_name() + " ");
  if (chosen.empty() && (arguments.empty() || !arguments[0].starts_with('-'))) {
    std::vector<std::string> names;
    for (const CLI::App* command : app.get_subcommands(nullptr)) names.push_back(command->get_name());
    if (arguments.empty()) return fmt::format("name a command: {}; {}", fmt::join(names, ", "), help);
    const std::string near = config::nearest(arguments[0], names);
    return fmt::format("{}: no such command{}; {}", arguments[0],
                       near.empty() ? "" : fmt::format(" (did you mean {}?)", near), help);
  }
  const std::vector<std::string> left_over = app.remaining(/*recurse=*/true);
  if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::ExtrasError) && !left_over.empty()) {
    const std::string& unknown = *std::ranges::find_first_of(arguments, left_over);
    const std::string near = nearest_option(*chosen[0], unknown);
    return fmt::format("{} is not understood here{}; {}", unknown,
                       near.empty() ? "" : fmt::format(" (did you mean {}?)", near), help);
  }
  // What is required and missing may have been misspelt.
  const bool missing = error.get_exit_code() == static_cast<int>(CLI::ExitCodes::RequiredError) && !chosen.empty();
  for (const std::string& argument : left_over) {
    const std::string name = argument.substr(0, argument.find('='));
    if (!missing || !name.starts_with('-') || name == "-" || name == "--") continue;
    const std::string near = nearest_option(*chosen[0], name);
    return fmt::format("{}: no such option{}; {}", name, near.empty() ? "" : fmt::format(" (did you mean {}?)", near),
                       help);
  }
  return fmt::format("{}; {}", error.what(), help);
}

// `threads`: what is known of them, for people.
int run(Communicator& world, int argc, char** argv, const std::string& threads) {
  CLI::App app("pkmesh trains language models whose capacity sits in product-key memory, sharded over the ranks.");
  app.name("pkmesh");
  app.set_version_flag("--version", program_version());
  app.require_subcommand(1);
  const std::vector<std::string> arguments = split_empty_values({argv + 1, argv + argc});
  app.failure_message([&](const CLI::App*, const CLI::Error& error) {
    return fmt::format("error: {}\n", one_line(complaint(app, arguments, dynamic_cast<const CLI::ParseError&>(error))));
  });
  // Options decide which collectives follow, so they must be the same before the first is acted on.
  agree_on(world, "command line", fmt::format("{}", fmt::join(arguments, "\n")));
  // What is replicated is computed on every rank, and must be the same bits on all.
  agree(world, [] { cpu_level(); });
  agree_on(world, "PKMESH_CPU", to_string(cpu_level()));
  Options options;
  options.train.command.assign(argv, argv + argc);
  options.train.threads = options.bench.threads = threads;
  Action action;
  add_tokenize(app, options.tokenize, action);
  add_train(app, options.train, action);
  add_eval(app, options.eval, action);
  add_generate(app, options.generate, action);
  add_others(app, options, action);
  refuse_absent_values(app);
  try {
    app.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
    agree(world, check_threads);
  } catch (const CLI::ParseError& error) {  // every rank reads the same line: rank 0 speaks for all
    if (world.rank() == 0) app.exit(error);
    if (error.get_exit_code() != 0) return 2;
    action = [](Communicator&) { return 0; };  // --help, --version: said by now
  }
  const int code = action(world);
  agree(world, flush_out);
  return code;
}

int guarded_run(Communicator& world, int argc, char** argv, const std::string& threads) {
  try {
    return run(world, argc, argv, threads);
  } catch (const AgreedError& error) {
    if (world.rank() == 0) log_error("error: " + one_line(error.what()));
    return 2;
  } catch (const UserError& error) {
    if (world.size() == 1) {
      log_error("error: " + one_line(error.what()));
      return 2;
    }
    log_error(fmt::format("error: rank {}: {}", world.rank(), one_line(error.what())));
    world.abort(2);
  } catch (const std::exception& error) {
    log_error(fmt::format("internal error on rank {} of {}: {}", world.rank(), world.size(), error.what()));
    world.abort(1);
  }
  return 1;  // not reached: abort() does not return
}

}  // namespace
}  // namespace pkmesh

namespace {

// What is opened first would otherwise become a standard stream, and hold what is said there. Each is opened the wrong
// way round, but for standard error: using it is still an error.
void hold_standard_streams() {
  for (const auto& [stream, mode] :
       {std::pair{STDIN_FILENO, O_WRONLY}, {STDOUT_FILENO, O_RDONLY}, {STDERR_FILENO, O_WRONLY}})
    if (::fcntl(stream, F_GETFD) == -1) ::open("/dev/null", mode);
}

}  // namespace

int main(int argc, char** argv) {
  hold_standard_streams();
  std::signal(SIGXFSZ, SIG_IGN);  // a file larger than ulimit -f is an error of the write that makes it so
  const std::string threads = pkmesh::settle_threads(argv);
  // What MPI and BLAS take for a step and give back is kept for the next: the system would have to zero its pages.
  mallopt(M_MMAP_THRESHOLD, 32 << 20);
  mallopt(M_TRIM_THRESHOLD, 512 << 20);
  try {
    pkmesh::MpiSession session(&argc, &argv);
    std::unique_ptr<pkmesh::Communicator> world;
    try {
      world = session.world();
    } catch (const std::exception& error) {  // said here, for the session then ends the job at once
      fmt::print(stderr, "error: {}\n", error.what());
      throw;
    }
    pkmesh::start_log(world->rank());
    return pkmesh::guarded_run(*world, argc, argv, threads);
  } catch (const std::exception& error) {  // MPI itself would not start
    fmt::print(stderr, "error: {}\n", error.what());
    return 2;
  }
}
