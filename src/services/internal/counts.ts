/**
 * Series for what happens too often to pay for a metric's update each time: an addition, read when metrics are.
 *
 * Where `Defaults` has telemetry off, nobody reads them. They are told apart from those of other instances in the process by `messaging.client.id`, and end with the scope.
 */
import * as Effect from "effect/Effect"
import * as Metric from "effect/Metric"
import type * as Scope from "effect/Scope"
import { Defaults } from "../Defaults.ts"
import { Instance } from "../Instance.ts"
import { getOrMake } from "./getOrMake.ts"

export interface Count {
  value: number
}

type Attributes = Readonly<Record<string, string>>

/** Makes series of a metric, one for each set of attributes. */
const makeSeries = <Input, State, S>(
  metric: Metric.Metric<Input, State>,
  make: () => S,
  read: (series: S) => State
): Effect.Effect<(attributes: Attributes) => S, never, Instance | Scope.Scope> =>
  Effect.gen(function* () {
    const { id } = yield* Instance
    const { telemetry = true } = yield* Defaults
    const context = yield* Effect.context<never>()
    const all = new Map<string, S>()
    const registrations: Array<Metric.Registration> = []
    yield* Effect.addFinalizer(() =>
      Effect.sync(() => {
        for (const registration of registrations) registration.remove()
      })
    )
    return (attributes) =>
      getOrMake(all, JSON.stringify(attributes), () => {
        const series = make()
        if (!telemetry) return series
        registrations.push(
          Metric.registerUnsafe(Metric.withAttributes(metric, { ...attributes, "messaging.client.id": id }), context, {
            get: () => read(series),
            update: () => undefined,
            modify: () => undefined
          })
        )
        return series
      })
  })

/** The counters of a metric. */
export const make = (metric: Metric.Counter<number>) =>
  makeSeries(
    metric,
    (): Count => ({ value: 0 }),
    ({ value }) => ({ count: value, incremental: true })
  )

/** The gauges of a metric: each time, all there are. One that is not named any more is gone. */
export const makeGauges = (metric: Metric.Gauge<number>) =>
  Effect.gen(function* () {
    const { id } = yield* Instance
    const { telemetry = true } = yield* Defaults
    const context = yield* Effect.context<never>()
    let registrations: ReadonlyArray<Metric.Registration> = []
    const set = (series: ReadonlyArray<{ readonly attributes: Attributes; readonly value: number }>): void => {
      for (const registration of registrations) registration.remove()
      registrations = (telemetry ? series : []).map(({ attributes, value }) =>
        Metric.registerUnsafe(Metric.withAttributes(metric, { ...attributes, "messaging.client.id": id }), context, {
          get: () => ({ value }),
          update: () => undefined,
          modify: () => undefined
        })
      )
    }
    yield* Effect.addFinalizer(() => Effect.sync(() => set([])))
    return set
  })

/** How long something takes, by buckets. */
export class Durations {
  private readonly counts: Array<number>
  private readonly boundaries: ReadonlyArray<number>
  private sum = 0
  private min = Number.POSITIVE_INFINITY
  private max = 0

  constructor(boundaries: ReadonlyArray<number>) {
    this.boundaries = boundaries
    this.counts = new Array<number>(boundaries.length + 1).fill(0)
  }

  add(seconds: number): void {
    const { boundaries, counts } = this
    let bucket = 0
    while (bucket < boundaries.length && seconds > boundaries[bucket]!) bucket++
    counts[bucket]!++
    this.sum += seconds
    if (seconds < this.min) this.min = seconds
    if (seconds > this.max) this.max = seconds
  }

  read(): Metric.HistogramState {
    let count = 0
    const buckets = this.boundaries.map((boundary, i): [number, number] => {
      count += this.counts[i]!
      return [boundary, count]
    })
    count += this.counts[this.boundaries.length]!
    return { buckets, count, min: count === 0 ? 0 : this.min, max: this.max, sum: this.sum }
  }
}

/** The histograms of a metric with these boundaries. */
export const makeDurations = (metric: Metric.Histogram<number>, boundaries: ReadonlyArray<number>) =>
  makeSeries(
    metric,
    () => new Durations(boundaries),
    (durations) => durations.read()
  )
