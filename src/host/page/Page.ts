/**
 * The console: a page to look at the cluster, at `/console`. See `docs/console.md`.
 *
 * Its files are served as they are. They run under a policy that lets nothing else run, and nothing be loaded from
 * elsewhere.
 */
import { readFileSync } from "node:fs"
import * as Effect from "effect/Effect"
import * as HttpRouter from "effect/http/HttpRouter"
import * as HttpServerResponse from "effect/http/HttpServerResponse"
import * as HttpApiBuilder from "effect/http-api/HttpApiBuilder"
import * as HttpApiMiddleware from "effect/http-api/HttpApiMiddleware"
import * as Layer from "effect/Layer"
import type * as Redacted from "effect/Redacted"
import { Tasks } from "../../plugins/async-task-manager/index.ts"
import { EventQueue } from "../../services/EventQueue.ts"
import * as Setting from "../../services/internal/setting.ts"
import { answer } from "../handlers.ts"
import { Api } from "./Api.ts"
import * as Operator from "./Operator.ts"
import * as State from "./State.ts"

export const settings = {
  token: Setting.secret(
    "COHORT_ADMIN_TOKEN",
    "none: the console is read-only",
    "What whoever redrives or discards dead letters on the console has to know"
  )
}

const headers = {
  "content-security-policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; base-uri 'none'; " +
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
  "x-content-type-options": "nosniff",
  "referrer-policy": "no-referrer",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "cache-control": "no-cache"
}

const file = (path: `/${string}`, name: string, contentType: string) => {
  const text = readFileSync(new URL(`assets/${name}`, import.meta.url), "utf8")
  return HttpRouter.route("GET", path, Effect.succeed(HttpServerResponse.text(text, { headers, contentType })))
}

const files = HttpRouter.addAll(
  Effect.sync(() => [
    HttpRouter.route("GET", "/", Effect.succeed(HttpServerResponse.redirect("console", { status: 302 }))),
    file("/console", "index.html", "text/html; charset=utf-8"),
    file("/console/console.css", "console.css", "text/css; charset=utf-8"),
    file("/console/icon.svg", "icon.svg", "image/svg+xml"),
    ...["console", "dom", "token", "letters", "events", "chart"].map((name) =>
      file(`/console/${name}.js`, `${name}.js`, "text/javascript; charset=utf-8")
    )
  ])
)

const look = (actions: boolean) =>
  HttpApiBuilder.group(
    Api,
    "look",
    Effect.fn(function* (handlers) {
      const queue = yield* EventQueue
      const state = yield* State.make({ actions })
      return handlers.handleAll({
        state: () => state,
        deadLetters: ({ query: { channel, ...page } }) => answer(queue.deadLetters(State.jobOf(channel), page))
      })
    })
  )

const act = HttpApiBuilder.group(
  Api,
  "act",
  Effect.fn(function* (handlers) {
    const queue = yield* EventQueue
    const tasks = yield* Tasks.Tasks
    const counted = <E, R>(effect: Effect.Effect<number, E, R>) => answer(Effect.map(effect, (count) => ({ count })))
    return handlers.handleAll({
      token: () => Effect.void,
      redrive: ({ payload: { channel, ids } }) =>
        // A task has a row to change as well.
        channel === Tasks.RunTask.channel
          ? counted(tasks.redrive(ids))
          : counted(queue.redrive(State.jobOf(channel), ids)),
      discard: ({ payload: { channel, ids } }) => counted(queue.discard(State.jobOf(channel), ids))
    })
  })
)

export const layer = (token: Redacted.Redacted<string> | undefined) =>
  Layer.merge(
    files,
    HttpApiBuilder.layer(Api).pipe(
      Layer.provide([look(token !== undefined), act]),
      Layer.provide(Operator.layer(token)),
      Layer.provide(HttpApiMiddleware.layerProblemDetails({ includeDetails: true }))
    )
  )
