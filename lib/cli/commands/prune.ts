import { type Command, InvalidArgumentError, Option } from 'commander';
import { expertMethodNames } from '../../prune/experts/methods.ts';
import { defaultEpochs, methodNames } from '../../prune/methods.ts';
import type { PruneProgress } from '../../prune/progress.ts';
import type { PruneOptions } from '../../prune/prune.ts';
import type { RecipeOptions } from '../../prune/recipe.ts';
import type { DeviceName } from '../../runtime/device.ts';
import type { Weights } from '../../runtime/weights.ts';
import type { Context, Start } from '../context.ts';
import { addGlobalOptions, decimal, integer, path } from '../options.ts';
import type { Terminal } from '../terminal.ts';

interface Options extends Omit<RecipeOptions, 'seed'> {
  recover?: RecipeOptions['recoverEpochs'];
  quantize?: RecipeOptions['quantizeValues'];
  output: string;
  recipe?: string;
  calibration?: string;
  memory?: number;
  packed?: string;
  weights?: Weights;
  resume?: boolean;
  overwrite?: boolean;
  device: DeviceName;
  dryRun?: boolean;
}

/** `espalier prune` */
export function definePrune(program: Command, start: Start): void {
  const command = program
    .command('prune')
    .description(
      'Remove experts, zero the weights that matter least in those left, and write the result as a new checkpoint.',
    )
    .argument('<model>', 'folder of a checkpoint')
    .requiredOption('--output <dir>', 'folder to make', path)
    .option(
      '--recipe <file>',
      'YAML or JSON: a list of stages, or the fields of these options; flags override it',
      path,
    )
    .addOption(new Option('--method <name>', 'how weights are scored (default: moe-pruner)').choices(methodNames))
    .option('--router-weighting', "weight each token by its gate in the statistics (default: moe-pruner's only)")
    .option('--no-router-weighting', 'all tokens of an expert count the same')
    .addOption(
      new Option('--sparsity <p>', 'fraction of the weights to zero (default: 0.5)')
        .argParser(decimal('a number above 0 and below 1', (p) => p > 0 && p < 1))
        .conflicts('pattern'),
    )
    .option('--pattern <N:M>', 'keep N of each M consecutive inputs', pattern)
    .addOption(
      new Option('--experts-method <name>', 'remove or merge experts first, chosen so (default: reap)').choices(
        expertMethodNames,
      ),
    )
    .addOption(
      new Option('--experts-ratio <r>', 'fraction of the experts to remove (default: 0.25)')
        .argParser(decimal('a number from 0 to below 1', (r) => r >= 0 && r < 1))
        .conflicts('expertsKeep'),
    )
    .option('--experts-keep <n>', 'experts of each layer that stay', integer(1, 65_536))
    .addOption(
      new Option(
        '--experts-scope <scope>',
        'global lets layers differ; only Espalier loads that (default: uniform)',
      ).choices(['uniform', 'global']),
    )
    .addOption(
      new Option('--recover [epochs]', 'train what is left to give again what the dense experts gave')
        .preset(String(defaultEpochs))
        .argParser(integer(1, 10_000)),
    )
    .addOption(
      new Option('--quantize <values>', 'round the experts to these values, errors made up for').choices([
        'int8',
        'int4',
      ]),
    )
    .option('--calibration <file>', 'text, .jsonl, .parquet, .u16, .u32, or self: the model writes its own', path)
    .option('--samples <n>', 'calibration sequences (default: 128)', integer(1, 1_000_000))
    .option('--sequence-length <n>', 'tokens of each (default: 2048, at most the context)', integer(2, 1_048_576))
    .addOption(new Option('--save <layout>', 'how to store it (default: dense)').choices(['dense', 'sparse']))
    .addOption(
      new Option('--memory <GiB>', "what the run may take, if it can (default: half of the machine's)").argParser(
        decimal('a number above 0', (size) => size > 0),
      ),
    )
    .option(
      '--packed <dir>',
      'make a packed copy too, which starts at once; --weights says what its matrices become',
      path,
    )
    .option('--resume', 'go on where an unfinished run at the output stopped')
    .option('--overwrite', 'replace a checkpoint that is there, discard an unfinished run')
    .option('--allow-nonfinite', 'leave matrices with NaN or infinity as they are')
    .option('--dry-run', 'check everything and say what would be done');
  start<Options>(addGlobalOptions(command, { gpu: 'one' }), run);
}

function pattern(text: string): string {
  const [, keep, group] = /^(\d{1,3}):(\d{1,3})$/.exec(text) ?? [];
  if (Number(keep) >= 1 && Number(keep) < Number(group)) return text;
  throw new InvalidArgumentError('It must be N:M with 1 ≤ N < M, for example 2:4.');
}

async function run(context: Context<Options>): Promise<undefined> {
  const { options, terminal, argv } = context;
  const pruneOptions = await readOptions(context);
  if (options.dryRun) {
    const { dryRun } = await import('../../prune/dry-run.ts');
    const { describeDryRun } = await import('../../report/prune-text.ts');
    const result = await dryRun(pruneOptions);
    terminal.endProgress();
    terminal.document({ dryRun: true, ...result });
    terminal.print(describeDryRun(result));
    return;
  }
  const { prune } = await import('../../prune/prune.ts');
  const { describePruned } = await import('../../report/prune-text.ts');
  context.resumeWith('finished layers are kept', argv.includes('--resume') ? argv : [...argv, '--resume']);
  const start = performance.now();
  const result = await prune(pruneOptions);
  terminal.endProgress();
  const seconds = (performance.now() - start) / 1000;
  terminal.document({ ...result, seconds });
  terminal.print(describePruned(result, seconds));
}

/** The recipe file, with what the flags say in its place. */
async function readOptions({ args, options, terminal, signal }: Context<Options>): Promise<PruneOptions> {
  const { readRecipe } = await import('../../prune/recipe-file.ts');
  const { output, calibration, packed, weights, resume, overwrite, device, threads, memory: memoryGiB } = options;
  const { expertsMethod, expertsRatio, expertsKeep, expertsScope } = options;
  const { method, routerWeighting, sparsity, pattern, samples, sequenceLength, save, allowNonfinite, seed } = options;
  const experts = { expertsMethod, expertsRatio, expertsKeep, expertsScope };
  const flags = {
    ...experts,
    recoverEpochs: options.recover,
    quantizeValues: options.quantize,
    method,
    routerWeighting,
    sparsity,
    pattern,
    samples,
    sequenceLength,
    save,
    allowNonfinite,
    seed,
  };
  const recipe: RecipeOptions = options.recipe === undefined ? {} : readRecipe(options.recipe);
  if (sparsity !== undefined) delete recipe.pattern;
  if (pattern !== undefined) delete recipe.sparsity;
  if (expertsRatio !== undefined) delete recipe.expertsKeep;
  if (expertsKeep !== undefined) delete recipe.expertsRatio;
  const given = Object.fromEntries(Object.entries(flags).filter(([, value]) => value !== undefined));
  return {
    model: args[0]!,
    output,
    calibration,
    packed,
    weights,
    resume,
    overwrite,
    device,
    threads,
    memoryGiB,
    ...recipe,
    ...given,
    signal,
    onProgress: (progress) => show(terminal, progress),
  };
}

function show(terminal: Terminal, progress: PruneProgress): void {
  switch (progress.type) {
    case 'calibration':
      if (progress.sequences > 0) {
        terminal.note(`calibrating on ${progress.sequences} sequences, ${progress.tokens} tokens (${progress.source})`);
      }
      return;
    case 'resumed':
      terminal.note(`going on after ${progress.layers} finished layers`);
      return;
    case 'stage': {
      const { layer, layers, stage, overall, secondsLeft } = progress;
      terminal.progress(overall, `layer ${layer + 1} of ${layers}, ${stage}`, secondsLeft);
      return;
    }
    case 'layer': {
      const { layer, sparsity } = progress.report;
      terminal.milestone(`layer ${layer + 1} done, ${(sparsity * 100).toFixed(2)} % zeros in its experts`);
      return;
    }
    case 'warning':
      terminal.warn(progress.message);
  }
}
