/** Builds the command line. Nothing heavy is imported until a command runs, so that `--help` is quick. */
import { Command, CommanderError } from 'commander';
import { version } from '../version.ts';
import { defineBench } from './commands/bench.ts';
import { defineBuild } from './commands/build.ts';
import { defineConvert } from './commands/convert.ts';
import { defineDemo } from './commands/demo.ts';
import { defineDoctor } from './commands/doctor.ts';
import { defineGenerate } from './commands/generate.ts';
import { defineInspect } from './commands/inspect.ts';
import { definePerplexity } from './commands/perplexity.ts';
import { definePrune } from './commands/prune.ts';
import { defineServe } from './commands/serve.ts';
import type { Start } from './context.ts';

/** Runs one command line, without the interpreter's own arguments, and returns its exit status. */
export async function main(argv: readonly string[]): Promise<number> {
  let exitCode = 0;
  const start: Start = (command, work) => {
    command.action(async () => {
      const { runCommand } = await import('./run.ts');
      exitCode = await runCommand(command, argv, work);
    });
  };
  const program = new Command('espalier')
    .description('Prune Mixture-of-Experts language models and run them sparse.')
    .version(version)
    .exitOverride()
    .configureOutput({ outputError: () => {} })
    .showSuggestionAfterError();
  for (const define of [
    defineDemo,
    defineInspect,
    definePrune,
    definePerplexity,
    defineGenerate,
    defineServe,
    defineConvert,
    defineBench,
    defineDoctor,
    defineBuild,
  ]) {
    define(program, start);
  }
  program.addHelpText('after', '\nExit status: 0 done, 1 a bug, 2 bad input or usage, 3 input/output, 4 interrupted.');
  try {
    await program.parseAsync(argv, { from: 'user' });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return 0;
    const { reportUsage } = await import('./run.ts');
    // `espalier bench` alone, or with something else, is told what there is of bench.
    const parent = program.commands.find((command) => command.name() === argv[0] && command.commands.length > 0);
    return reportUsage(
      error,
      argv,
      (parent ?? program).commands.map((command) => command.name()),
    );
  }
  return exitCode;
}
