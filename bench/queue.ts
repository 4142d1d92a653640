/** What the queue benchmarks share. */
import { median } from "./bench.ts"

/** About 150 bytes as JSON. */
export const payload = {
  id: "5b1f0f5e-2f0c-4d52-9a0f-7f2d7d3d7c11",
  name: "Ada Lovelace",
  email: "ada@analytical.example",
  rows: 250,
  createdAt: "2026-01-01T00:00:00.000Z"
}

export const pause = (millis: number) => new Promise((resolve) => setTimeout(resolve, millis))

/** Publishes one at a time, to a worker that waits, and takes the median of the times until its handler starts. */
export const medianOf = async (
  n: number,
  publish: () => Promise<unknown>,
  started: () => Promise<bigint>,
  millis = 3
): Promise<number> => {
  const times: Array<number> = []
  for (let i = 0; i < n; i++) {
    const start = started()
    const from = process.hrtime.bigint()
    const published = publish()
    times.push(Number((await start) - from))
    await published
    if (millis > 0) await pause(millis)
  }
  return median(times) * n
}

export const signal = () => {
  let resolve: (at: bigint) => void = () => {}
  return {
    next: () => new Promise<bigint>((done) => (resolve = done)),
    fire: () => resolve(process.hrtime.bigint())
  }
}
