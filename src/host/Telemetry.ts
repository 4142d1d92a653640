/**
 * Traces, logs and metrics of an instance to an OpenTelemetry collector, where `OTEL_EXPORTER_OTLP_ENDPOINT` (or that
 * of one signal) names one. The other variables of OpenTelemetry's specification are read as well.
 */
import * as NodeHttpClient from "@effect/platform-node/NodeHttpClient"
import * as ConfigProvider from "effect/ConfigProvider"
import * as Effect from "effect/Effect"
import * as Layer from "effect/Layer"
import * as Otlp from "effect/observability/Otlp"
import * as OtlpSerialization from "effect/observability/OtlpSerialization"
import * as Setting from "../services/internal/setting.ts"

const signals = "OpenTelemetry's other variables are read as well"

export const settings = {
  endpoint: Setting.url("OTEL_EXPORTER_OTLP_ENDPOINT", "none: nothing is sent", `OTLP collector; ${signals}`),
  traces: Setting.url("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "the above", "Of traces"),
  metrics: Setting.url("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "the above", "Of metrics"),
  logs: Setting.url("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "the above", "Of logs"),
  serviceName: Setting.text("OTEL_SERVICE_NAME", "the name of the app", "What the collector calls the app")
}

/** The specification's defaults, which are not those of the exporters. */
const defaults = ConfigProvider.layerAdd(
  ConfigProvider.fromEnvRecord({
    OTEL_TRACES_EXPORTER: "otlp",
    OTEL_METRICS_EXPORTER: "otlp",
    OTEL_LOGS_EXPORTER: "otlp"
  })
)

export const layer = (instance: { readonly app: string; readonly id: string; readonly version: string }) =>
  Layer.unwrap(
    Effect.gen(function* () {
      const { serviceName = instance.app, ...endpoints } = yield* Setting.all(settings)
      if (Object.keys(endpoints).length === 0) return Layer.empty
      return Otlp.layerFromConfig({
        resource: {
          serviceName,
          serviceVersion: instance.version,
          attributes: { "service.instance.id": instance.id }
        }
      }).pipe(Layer.provide([OtlpSerialization.layerJson, NodeHttpClient.layerUndici, defaults]))
    })
  )
