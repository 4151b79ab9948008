/** Notes as sound: a few harmonics that fade, one oscillator a note. */

const HARMONICS = [0, 1, 0.45, 0.25, 0.12, 0.06, 0.03];

/** Plays [{pitch, start, length}] (MIDI pitch, steps); {elapsed() in steps, stop()}. */
export function play(notes, secondsPerStep) {
  const context = new AudioContext();
  const wave = context.createPeriodicWave(Float32Array.from(HARMONICS, () => 0), Float32Array.from(HARMONICS));
  const out = new DynamicsCompressorNode(context);
  const start = context.currentTime + 0.1;
  out.connect(context.destination);
  for (const note of notes) {
    const from = start + note.start * secondsPerStep;
    const until = from + note.length * secondsPerStep;
    const frequency = 440 * 2 ** ((note.pitch - 69) / 12);
    const tone = new OscillatorNode(context, { frequency, periodicWave: wave });
    const level = new GainNode(context, { gain: 0 });
    level.gain.setValueAtTime(0, from);
    level.gain.linearRampToValueAtTime(0.22, from + 0.012);
    level.gain.setTargetAtTime(0.09, from + 0.012, 0.35);
    level.gain.setTargetAtTime(0, until - 0.05, 0.04);
    tone.connect(level).connect(out);
    tone.start(from);
    tone.stop(until + 0.3);
  }
  return {
    elapsed: () => (context.currentTime - start) / secondsPerStep,
    stop: () => context.close(),
  };
}
