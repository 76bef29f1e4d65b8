/** What `espalier doctor` finds out. Works where the addon cannot be loaded. */
import { accessSync, constants, statfsSync } from 'node:fs';
import { availableParallelism, cpus, freemem, totalmem } from 'node:os';
import { sep } from 'node:path';
import { addonFile, type NativeCudaSurvey, type NativeFeatures, native, packageRoot } from '../native.ts';
import { version } from '../version.ts';
import { formatBytes } from './format.ts';

export interface Check {
  readonly name: string;
  /** `note`: works, but not as well as it could; `fail`: Espalier cannot run models here. */
  readonly status: 'ok' | 'note' | 'fail';
  readonly value: string;
  /** What to do about it. */
  readonly advice?: string;
}

export interface DoctorReport {
  readonly ok: boolean;
  readonly checks: readonly Check[];
}

export function examine(): DoctorReport {
  const addon = loadAddon();
  const checks: Check[] = [
    { name: 'espalier', status: 'ok', value: `${version} in ${packageRoot}` },
    checkNode(),
    checkPlatform(),
    addon.check,
    ...checkProcessor(addon.features),
    ...checkCuda(addon.features !== undefined),
    checkMemory(),
    checkDisk(),
  ];
  return { ok: checks.every(({ status }) => status !== 'fail'), checks };
}

function loadAddon(): { check: Check; features?: NativeFeatures } {
  const name = 'addon';
  try {
    const features = native().features();
    const file = addonFile();
    const kind = file.includes(`${sep}prebuilds${sep}`) ? 'prebuilt' : 'compiled here';
    return { check: { name, status: 'ok', value: `${file} (${kind})` }, features };
  } catch (error) {
    const value = (error as Error).message.split('\n', 1)[0] ?? '';
    const advice = 'run "npx espalier build" (in a clone "npm run build"); Debian: apt-get install g++ cmake make';
    return { check: { name, status: 'fail', value, advice } };
  }
}

function checkNode(): Check {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
  const fits = major > 20 || (major === 20 && minor >= 19);
  const check = { name: 'Node', value: process.version };
  return fits ? { ...check, status: 'ok' } : { ...check, status: 'fail', advice: 'install Node 20.19 or newer' };
}

function checkPlatform(): Check {
  const check = { name: 'platform', value: `${process.platform} ${process.arch}` };
  const { platform, arch } = process;
  if (platform === 'linux' && (arch === 'x64' || arch === 'arm64')) return { ...check, status: 'ok' };
  return { ...check, status: 'fail', advice: 'use Linux on x64 or arm64' };
}

function checkProcessor(features: NativeFeatures | undefined): Check[] {
  const cores = availableParallelism();
  if (features === undefined) {
    const value = `${cpus()[0]?.model ?? 'unknown'}, ${cores} cores`;
    return [{ name: 'processor', status: 'ok', value }];
  }
  const { model, isa, best, note, threads, flags } = features;
  const kernels = `${isa}${isa === best ? '' : ` (best here: ${best})`}${note === '' ? '' : `; ${note}`}`;
  const lacking = process.arch === 'arm64' ? 'dot products' : 'AVX2';
  const slow = best === 'scalar' ? `without ${lacking} the kernels are slow; use a newer processor` : undefined;
  const advice = isa === best && note === '' ? slow : 'unset ESPALIER_ISA to use the best kernels';
  return [
    { name: 'processor', status: 'ok', value: `${model}${flags.length === 0 ? '' : ` (${flags.join(' ')})`}` },
    { name: 'kernels', status: advice === undefined ? 'ok' : 'note', value: kernels, ...(advice && { advice }) },
    checkFormats(features),
    { name: 'threads', status: 'ok', value: `${threads} by default, of ${cores} cores` },
  ];
}

/** Sparse formats whose products would lose to dense ones on these kernels. */
function checkFormats({ isa, expanded }: NativeFeatures): Check {
  const name = 'sparse formats';
  if (expanded.length === 0) return { name, status: 'ok', value: 'all run sparse' };
  const formats = expanded.map((format) => format.replace('2:4', 'N:M')).join(', ');
  const value = `${formats}: expanded to dense at load, since ${isa} multiplies them faster so`;
  const keepsBf16 = !expanded.some((format) => format.endsWith('bf16'));
  return keepsBf16
    ? { name, status: 'note', value, advice: 'zeros save time here only with --weights bf16 (or source)' }
    : { name, status: 'note', value };
}

/** Models run on the CPU where there is none, so that its absence is nothing to mend. */
function checkCuda(loaded: boolean): Check[] {
  const name = 'CUDA';
  if (!loaded) return [{ name, status: 'ok', value: 'not known without the addon' }];
  const survey = native().cudaDevices();
  if (survey.devices.length > 0) {
    const list = survey.devices.map(
      ({ name, capability, memory }) => `${name} (${capability}, ${formatBytes(memory)})`,
    );
    const several = survey.devices.length > 1 ? ', which uses as many as a model needs' : '';
    const value = `${list.join(', ')}: for --device cuda${several}`;
    return [{ name, status: 'ok', value }, checkCublasLt(survey)];
  }
  const kernels = survey.compiled ? 'kernels compiled, ' : 'off: ';
  return [{ name, status: 'ok', value: `${kernels}${survey.reason}; models run on the CPU` }];
}

/** @internal Dense products of long prompts on the GPU go through it where it is found. */
export function checkCublasLt({ hasCublasLt, cublasLt }: NativeCudaSurvey): Check {
  const name = 'cuBLASLt';
  if (hasCublasLt) return { name, status: 'ok', value: cublasLt };
  const advice = "long prompts run faster with it: install the CUDA toolkit or NVIDIA's wheel nvidia-cublas";
  return { name, status: 'note', value: cublasLt, advice };
}

function checkMemory(): Check {
  const limit = process.constrainedMemory();
  const total = limit > 0 ? Math.min(limit, totalmem()) : totalmem();
  const free = Math.min(process.availableMemory?.() ?? freemem(), total);
  const check = { name: 'memory', value: `${formatBytes(free)} available of ${formatBytes(total)}` };
  return free >= 1e9
    ? { ...check, status: 'ok' }
    : { ...check, status: 'note', advice: 'free some: a model needs its weights in memory to run' };
}

function checkDisk(): Check {
  const folder = process.cwd();
  const { bavail, bsize, blocks } = statfsSync(folder);
  const value = `${formatBytes(bavail * bsize)} available of ${formatBytes(blocks * bsize)} at ${folder}`;
  const check = { name: 'disk', value };
  try {
    accessSync(folder, constants.W_OK);
  } catch {
    return { ...check, status: 'note', advice: 'this folder cannot be written to; give --output elsewhere' };
  }
  return bavail * bsize >= 1e9
    ? { ...check, status: 'ok' }
    : { ...check, status: 'note', advice: 'a pruned checkpoint needs as much room as its source' };
}
