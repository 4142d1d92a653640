/** The jobs of the outbox: how they are written as rows, and handed to the queue. */
import * as Effect from "effect/Effect"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"
import type { NewJob } from "../../EventQueueStore.ts"
import { Payload } from "../../Payload.ts"
import { InvalidInput, type Unavailable } from "../../Reason.ts"
import { SyncOutbox } from "../../SyncOutbox.ts"
import { currentTrace } from "../telemetry.ts"
import { repeatWindow } from "./repeats.ts"

const Settings = Schema.fromJsonString(
  Schema.Struct({
    id: Schema.String,
    delay: Schema.Number,
    timeout: Schema.Number,
    maxRetries: Schema.Int,
    keepId: Schema.Number
  })
)

/** A line of settings, and the payload as on the wire. */
const encode = ({ isGiven, payload, ...settings }: NewJob, trace: string | undefined): string => {
  // An id that nobody chose may be kept longer, for what is sent again.
  const keepId = isGiven ? settings.keepId : Math.max(settings.keepId, repeatWindow)
  const sent = trace === undefined ? payload : payload.withTrace(trace)
  return `${JSON.stringify({ ...settings, keepId })}\n${sent.json}`
}

const decode = (row: string): Effect.Effect<NewJob, InvalidInput> => {
  const [settings, payload] = row.split("\n", 2)
  return Effect.mapBoth(Schema.decodeUnknownEffect(Settings)(settings), {
    onSuccess: (settings) => ({ ...settings, isGiven: true, payload: Payload.fromJson(payload ?? "") }),
    onFailure: (error) => new InvalidInput({ field: "payload", detail: error.message })
  })
}

/** The part of the outbox that holds jobs; `undefined` when there is none. */
export const open = (queue: {
  readonly app: string
  readonly instance: string
  readonly publish: (
    channel: string,
    job: NewJob
  ) => Effect.Effect<unknown, { readonly reason: InvalidInput | Unavailable }>
  readonly depth: (channel: string) => Effect.Effect<unknown, unknown>
}): Effect.Effect<
  | undefined
  | {
      readonly write: (channel: string, job: NewJob) => Effect.Effect<void, InvalidInput | Unavailable>
    },
  never,
  Scope.Scope
> =>
  Effect.flatMap(Effect.serviceOption(SyncOutbox), (found) => {
    if (Option.isNone(found)) return Effect.succeed(undefined)
    const outbox = found.value.open({
      app: queue.app,
      kind: "job",
      instance: queue.instance,
      send: (channel, rows) =>
        Effect.forEach(
          rows,
          (row) =>
            Effect.matchEffect(decode(row.payload), {
              onFailure: Effect.succeed,
              onSuccess: (job) =>
                Effect.match(queue.publish(channel, { ...job, delay: Math.max(0, job.delay - row.age) }), {
                  onSuccess: () => undefined,
                  onFailure: ({ reason }) => reason
                })
            }),
          { concurrency: "unbounded" }
        ),
      probe: (channel) => Effect.isSuccess(queue.depth(channel)),
      onAside: () => Effect.void
    })
    return Effect.map(outbox, ({ write }) => ({
      write: (channel, job) => write({ channel, message: job.id, payload: encode(job, currentTrace()) })
    }))
  })
