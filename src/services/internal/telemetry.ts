/**
 * How operations show up in traces, and how a trace goes along with what is sent.
 *
 * Effect's own tracer shows its spans to nobody: until another one is provided no spans are made, and nothing is sent
 * along. Names and attributes follow OpenTelemetry's conventions for messaging.
 */
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Fiber from "effect/Fiber"
import * as Headers from "effect/http/Headers"
import * as HttpTraceContext from "effect/http/HttpTraceContext"
import * as Option from "effect/Option"
import * as References from "effect/References"
import * as Tracer from "effect/Tracer"

/** Whether anyone sees the spans of what runs in a context. */
export const isTraced = (context: Context.Context<never>): boolean =>
  Context.get(context, Tracer.Tracer) !== Tracer.nativeTracer && Context.get(context, References.TracerEnabled)

const isFiberTraced = ({ cache }: Fiber.Fiber<unknown, unknown>): boolean =>
  cache.tracer !== undefined && cache.tracer !== Tracer.nativeTracer && cache.tracerEnabled

/** W3C `traceparent`. */
const traceparent = ({ sampled, spanId, traceId }: Tracer.AnySpan): string =>
  `00-${traceId.padStart(32, "0")}-${spanId}-${sampled ? "01" : "00"}`

/** The trace that the running fiber is part of, for what it leaves behind. */
export const currentTrace = (): string | undefined => {
  const fiber = Fiber.getCurrent()
  return fiber?.cache.span !== undefined && isFiberTraced(fiber) ? traceparent(fiber.cache.span) : undefined
}

/** Attributes of a span; values are what OpenTelemetry takes. */
export type Attributes = Record<string, unknown>

/**
 * Runs an operation that crosses the wire, under a client span, and tells it the trace to send along. Operations of the
 * memory backends take less time than a span costs, and get none: their trace is the caller's.
 *
 * As with ports, called inside a running effect, and what it returns is run at once.
 */
export const sending = <A, E, R>(
  system: string,
  name: string,
  attributes: Attributes,
  run: (trace: string | undefined) => Effect.Effect<A, E, R>
): Effect.Effect<A, E, R> => {
  const fiber = Fiber.getCurrent()
  if (fiber === undefined || !isFiberTraced(fiber)) return run(undefined)
  if (system === "memory") return run(currentTrace())
  return Effect.useSpan(name, { kind: "producer", attributes: { "messaging.system": system, ...attributes } }, (span) =>
    run(traceparent(span))
  )
}

/** Like {@link sending}, for what leaves nothing behind. */
export const traced = <A, E, R>(
  system: string,
  name: string,
  attributes: Attributes,
  effect: Effect.Effect<A, E, R>
): Effect.Effect<A, E, R> => {
  const fiber = Fiber.getCurrent()
  return system === "memory" || fiber === undefined || !isFiberTraced(fiber)
    ? effect
    : Effect.useSpan(name, { kind: "client", attributes: { "cohort.system": system, ...attributes } }, () => effect)
}

/** Runs a handler under a consumer span, in the trace of what it handles. For contexts that {@link isTraced}. */
export const consuming = <A, E, R>(
  trace: string | undefined,
  name: string,
  attributes: Attributes,
  handler: Effect.Effect<A, E, R>
): Effect.Effect<A, E, R> => {
  const parent = trace === undefined ? undefined : Option.getOrUndefined(spanOf(trace))
  return Effect.withSpan(handler, name, {
    kind: "consumer",
    attributes,
    captureStackTrace: false,
    ...(parent === undefined ? { root: true } : { parent })
  }) as Effect.Effect<A, E, R>
}

const spanOf = (trace: string): Option.Option<Tracer.ExternalSpan> =>
  HttpTraceContext.w3c(Headers.fromRecordUnsafe({ traceparent: trace }))
