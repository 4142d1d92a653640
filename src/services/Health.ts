/**
 * How an instance is doing, by component, and why.
 *
 * Provide `Health.layer` below everything else: connections, sync channels and alarms register themselves with it when
 * they find it in context, and so may plugins:
 *
 * ```ts
 * yield* Health.register("disk", Effect.map(freeSpace, (free) => free > 1e9 ? Health.up : Health.degraded("nearly full")))
 * ```
 *
 * An instance is _live_ unless a component has `failed` for good: a restart is what helps. It is _ready_ for requests
 * when it has started, does not stop, and no component is `down`. What is `degraded` works, and wants looking at.
 *
 * @since 0.2.0
 */
import * as Cause from "effect/Cause"
import * as Context from "effect/Context"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Option from "effect/Option"
import * as Schema from "effect/Schema"
import type * as Scope from "effect/Scope"

/**
 * - `up`: as it should be.
 * - `degraded`: it works, and something is wrong.
 * - `down`: it does not work; it is expected to again.
 * - `failed`: it does not work, and will not before a restart.
 *
 * @since 0.2.0
 */
export const Status = Schema.Literals(["up", "degraded", "down", "failed"])

/**
 * What a check found; `detail` says why it is not `up`.
 *
 * @since 0.2.0
 */
export interface Finding {
  readonly status: typeof Status.Type
  readonly detail?: string
}

/** @since 0.2.0 */
export const up: Finding = { status: "up" }
/** @since 0.2.0 */
export const degraded = (detail: string): Finding => ({ status: "degraded", detail })
/** @since 0.2.0 */
export const down = (detail: string): Finding => ({ status: "down", detail })
/** @since 0.2.0 */
export const failed = (detail: string): Finding => ({ status: "failed", detail })

/**
 * What to think of connections: `down` while one is made again, `failed` when one was given up.
 *
 * @internal
 */
export const ofLinks = (
  links: Readonly<Record<string, "idle" | "connecting" | "ready" | "reconnecting" | "closed">>
): Finding => {
  const notReady = Object.entries(links).filter(([, state]) => state !== "ready" && state !== "idle")
  if (notReady.length === 0) return up
  const detail = notReady.map(([role, state]) => `${role} ${state}`).join(", ")
  return notReady.some(([, state]) => state === "closed") ? failed(detail) : down(detail)
}

/**
 * All of an instance's findings.
 *
 * @since 0.2.0
 */
export const Report = Schema.Struct({
  live: Schema.Boolean,
  ready: Schema.Boolean,
  phase: Schema.Literals(["starting", "running", "stopping"]),
  components: Schema.Array(
    Schema.Struct({ component: Schema.String, status: Status, detail: Schema.optionalKey(Schema.String) })
  )
})

/**
 * The health of this instance.
 *
 * @since 0.2.0
 */
export class Health extends Context.Service<
  Health,
  {
    /** Adds a check until the scope closes. One that dies or takes longer than 2 seconds counts as `down`. */
    readonly add: (component: string, check: Effect.Effect<Finding>) => Effect.Effect<void, never, Scope.Scope>
    readonly report: Effect.Effect<typeof Report.Type>
    /** From now on the instance has started. */
    readonly started: Effect.Effect<void>
    /** From now on it stops: not ready, whatever its components say. */
    readonly stopping: Effect.Effect<void>
  }
>()("cohort/services/Health") {}

/**
 * Adds a check to the `Health` in context until the scope closes; does nothing where there is none.
 *
 * @since 0.2.0
 */
export const register = (component: string, check: Effect.Effect<Finding>): Effect.Effect<void, never, Scope.Scope> =>
  Effect.flatMap(Effect.serviceOption(Health), (health) =>
    Option.isNone(health) ? Effect.void : health.value.add(component, check)
  )

/** How long a check may take. */
const patience = "2 seconds"

/**
 * Makes the service.
 *
 * @since 0.2.0
 */
export const make: Effect.Effect<Health["Service"]> = Effect.sync(() => {
  const checks = new Set<{ readonly component: string; readonly check: Effect.Effect<Finding> }>()
  let phase: (typeof Report.Type)["phase"] = "starting"

  const run = ({ component, check }: { readonly component: string; readonly check: Effect.Effect<Finding> }) =>
    check.pipe(
      Effect.timeoutOrElse({
        duration: patience,
        orElse: () => Effect.succeed(down(`does not answer within ${patience}`))
      }),
      Effect.catchCause((cause) => Effect.succeed(down(`cannot be checked: ${Cause.squash(cause)}`))),
      Effect.map((finding) => ({ component, ...finding }))
    )

  return Health.of({
    add: (component, check) => {
      const entry = { component, check }
      return Effect.asVoid(
        Effect.acquireRelease(
          Effect.sync(() => checks.add(entry)),
          () => Effect.sync(() => checks.delete(entry))
        )
      )
    },
    report: Effect.map(
      Effect.suspend(() => Effect.forEach([...checks], run, { concurrency: "unbounded" })),
      (components) => {
        const any = (status: Finding["status"]) => components.some((component) => component.status === status)
        return { live: !any("failed"), ready: phase === "running" && !any("down") && !any("failed"), phase, components }
      }
    ),
    started: Effect.sync(() => {
      if (phase === "starting") phase = "running"
    }),
    stopping: Effect.sync(() => {
      phase = "stopping"
    })
  })
})

/**
 * Provides {@link Health}.
 *
 * @since 0.2.0
 */
export const layer: Layer.Layer<Health> = Layer.effect(Health, make)
