/** Runs a native plan over every expert matrix of a layer. */
import { type NativePlan, native, runJob } from '../../native.ts';
import type { ExpertOutcome, LayerContext, StageOutcome } from './stage.ts';

/** `step` is the stage's own, for the progress bar. */
export async function runPlan(context: LayerContext, plan: NativePlan, step: number): Promise<StageOutcome> {
  const { pruner, signal, source } = context;
  const reports = await runJob(
    () => native().prunerPrune(pruner, plan, (done, total) => context.progress(step, done, total)),
    signal,
    { file: source },
  );
  const experts = new Map<string, ExpertOutcome>();
  for (const { part, expert, role, tokens, fallback, skipped, starved } of reports) {
    const key = `${part}.${expert}`;
    const before = experts.get(key);
    experts.set(key, {
      part,
      expert,
      tokens,
      starved: starved || before?.starved === true,
      fallback: fallback || before?.fallback === true,
      skipped: [...(before?.skipped ?? []), ...(skipped ? [role] : [])],
    });
  }
  return { experts: [...experts.values()] };
}
