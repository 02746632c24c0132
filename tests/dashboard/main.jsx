// Draws docs/grafana-dashboard.json with Grafana's own components (panels, units, thresholds, overrides,
// transformations), from a Prometheus. What is done here is what the Grafana server's page does around
// them: layout, variables, queries, and the defaults of its panels.
import React from "react";
import { createRoot } from "react-dom/client";
import {
  FieldColorModeId, FieldConfigOptionsRegistry, FieldType, LoadingState, applyFieldOverrides,
  booleanOverrideProcessor, createTheme, dateTime, displayNameOverrideProcessor,
  getDisplayValueAlignmentFactors, getFieldDisplayValues, identityOverrideProcessor, numberOverrideProcessor, standardTransformers,
  standardTransformersRegistry, thresholdsOverrideProcessor, transformDataFrame, unitOverrideProcessor,
  valueMappingsOverrideProcessor,
} from "@grafana/data";
import {
  BarGauge, BigValue, GlobalStyles, PanelChrome, PanelContextProvider, Table, ThemeContext, TimeSeries,
  VizRepeater,
} from "@grafana/ui";
import dashboard from "../../docs/grafana-dashboard.json";

const asked = new URLSearchParams(location.search);
const WIDTH = Number(asked.get("width") ?? 1600);
const SCRAPED_EVERY_S = Number(asked.get("scraped") ?? 15);
const MINUTES = Number(asked.get("minutes") ?? 60);
const END_S = Number(asked.get("end") ?? Date.now() / 1000);
const CELL = 30, GAP = 8; // the height of a row of the grid, and the space between panels
const theme = createTheme({ colors: { mode: asked.get("theme") ?? "dark" } });

const PANELS = {
  stat: {
    custom: {},
    options: {
      reduceOptions: { calcs: ["lastNotNull"], fields: "", values: false }, orientation: "auto",
      textMode: "auto", colorMode: "value", graphMode: "area", justifyMode: "auto",
    },
    color: { mode: FieldColorModeId.Thresholds },
  },
  timeseries: {
    custom: {
      drawStyle: "line", lineInterpolation: "linear", lineWidth: 1, fillOpacity: 0, gradientMode: "none",
      showPoints: "auto", pointSize: 5, spanNulls: false, insertNulls: false, axisPlacement: "auto",
      axisColorMode: "text", axisLabel: "", axisBorderShow: false, axisCenteredZero: false,
      barAlignment: 0, barWidthFactor: 0.6, stacking: { mode: "none", group: "A" },
      thresholdsStyle: { mode: "off" }, scaleDistribution: { type: "linear" },
      hideFrom: { tooltip: false, viz: false, legend: false },
    },
    options: { legend: { displayMode: "list", placement: "bottom", showLegend: true, calcs: [] } },
    color: { mode: FieldColorModeId.PaletteClassic },
  },
  table: {
    custom: { align: "auto", cellOptions: { type: "auto" }, inspect: false, filterable: false },
    options: { showHeader: true, cellHeight: "sm" },
    color: { mode: FieldColorModeId.Thresholds },
  },
  bargauge: {
    custom: {},
    options: {
      reduceOptions: { calcs: ["lastNotNull"], fields: "", values: false }, displayMode: "gradient",
      orientation: "auto", valueMode: "color", showUnfilled: true, minVizHeight: 16, minVizWidth: 8,
    },
    color: { mode: FieldColorModeId.Thresholds },
  },
};
const DEFAULT_THRESHOLDS = {
  mode: "absolute",
  steps: [{ value: -Infinity, color: "green" }, { value: 80, color: "red" }],
};

const registry = new FieldConfigOptionsRegistry();
const property = (id, path, process, isCustom = false) => registry.register({
  id: isCustom ? `custom.${path}` : id, path, isCustom, process, name: id, shouldApply: () => true,
});
property("displayName", "displayName", displayNameOverrideProcessor);
property("unit", "unit", unitOverrideProcessor);
for (const each of ["min", "max", "decimals"]) property(each, each, numberOverrideProcessor);
property("color", "color", identityOverrideProcessor);
property("noValue", "noValue", identityOverrideProcessor);
property("links", "links", identityOverrideProcessor);
property("mappings", "mappings", valueMappingsOverrideProcessor);
property("thresholds", "thresholds", thresholdsOverrideProcessor);
property("fieldMinMax", "fieldMinMax", booleanOverrideProcessor);
const customs = new Set(Object.values(PANELS).flatMap((panel) => Object.keys(panel.custom)));
for (const each of [...customs, "width", "minWidth", "lineStyle", "fillBelowTo", "axisSoftMin", "axisSoftMax", "hidden"]) {
  property(each, each, identityOverrideProcessor, true);
}
const transformers = new Map(Object.values(standardTransformers).map((each) => [each.id, each]));
standardTransformersRegistry.setInit(() => [...transformers].map(([id, transformation]) => ({
  id, name: transformation.name, transformation,
})));

// --- questions -------------------------------------------------------------------------------------

async function prometheus(path, query) {
  const answer = await (await fetch(`/api/v1/${path}?${new URLSearchParams(query)}`)).json();
  if (answer.status !== "success") throw new Error(answer.error);
  return answer.data;
}

async function variables() {
  const values = {};
  for (const each of dashboard.templating.list) {
    if (each.type === "datasource") continue;
    const [, metric, label] = /^label_values\((\w+),\s*(\w+)\)$/.exec(each.query.query ?? each.query);
    const found = await prometheus(`label/${label}/values`, { "match[]": metric });
    values[each.name] = asked.get(each.name) ?? found[0];
  }
  return values;
}

async function frames(panel, values, width) {
  const step = Math.max(SCRAPED_EVERY_S, Math.ceil((MINUTES * 60) / width));
  const built = {
    ...values, __rate_interval: `${Math.max(step + SCRAPED_EVERY_S, 4 * SCRAPED_EVERY_S)}s`,
    __interval: `${step}s`, __range: `${MINUTES * 60}s`,
  };
  const series = [];
  for (const target of panel.targets) {
    const query = target.expr.replace(/\$\{?(\w+)\}?/g, (_, name) => built[name] ?? `$${name}`);
    const asks = target.instant
      ? ["query", { query, time: END_S }]
      : ["query_range", { query, start: Math.floor((END_S - MINUTES * 60) / step) * step, end: END_S, step }];
    const { result } = await prometheus(...asks);
    if (target.format === "table") series.push(table(result, target));
    else series.push(...result.map((each) => line(each, target, step)));
  }
  return series;
}

function line({ metric, values, value }, target, step) {
  const name = !target.legendFormat || target.legendFormat === "__auto"
    ? JSON.stringify(metric)
    : target.legendFormat.replace(/\{\{\s*(\w+)\s*\}\}/g, (_, label) => metric[label] ?? "");
  const points = filled(values ?? [value], step);
  return {
    refId: target.refId, length: points.length, meta: { type: "timeseries-multi" },
    fields: [
      { name: "Time", type: FieldType.time, config: { interval: step * 1000 }, values: points.map(([t]) => t * 1000) },
      {
        name: "Value", type: FieldType.number, labels: metric, config: { displayNameFromDS: name },
        values: points.map(([, v]) => (v === null ? null : Number(v))),
      },
    ],
  };
}

// Where a node told nothing there is a gap, and no line from before to after.
function filled(points, step) {
  return points.flatMap((point, n) => {
    const gap = n > 0 && point[0] - points[n - 1][0] > 1.5 * step;
    return gap ? [[points[n - 1][0] + step, null], point] : [point];
  });
}

function table(result, target) {
  const labels = [...new Set(result.flatMap(({ metric }) => Object.keys(metric)))].sort();
  return {
    refId: target.refId, length: result.length,
    fields: [
      { name: "Time", type: FieldType.time, config: {}, values: result.map(({ value }) => value[0] * 1000) },
      ...labels.map((label) => ({
        name: label, type: FieldType.string, config: { filterable: true },
        values: result.map(({ metric }) => metric[label]),
      })),
      {
        name: `Value #${target.refId}`, type: FieldType.number, config: {},
        values: result.map(({ value }) => Number(value[1])),
      },
    ],
  };
}

function transformed(panel, series) {
  return new Promise((resolve) => {
    transformDataFrame(panel.transformations ?? [], series, { interpolate: (text) => text }).subscribe(resolve);
  });
}

// --- panels ----------------------------------------------------------------------------------------

const timeRange = () => {
  const from = dateTime((END_S - MINUTES * 60) * 1000), to = dateTime(END_S * 1000);
  return { from, to, raw: { from, to } };
};

function configured(panel, series) {
  const { custom, color } = PANELS[panel.type];
  const given = panel.fieldConfig.defaults;
  const thresholds = given.thresholds && {
    ...given.thresholds, steps: given.thresholds.steps.map((step) => ({ ...step, value: step.value ?? -Infinity })),
  };
  return {
    overrides: panel.fieldConfig.overrides,
    defaults: {
      color, mappings: [], ...given, thresholds: thresholds ?? DEFAULT_THRESHOLDS,
      custom: { ...custom, ...given.custom },
    },
  };
}

function Content({ panel, series, width, height }) {
  const fieldConfig = configured(panel);
  const replaceVariables = (text) => text;
  const options = { ...PANELS[panel.type].options, ...panel.options };
  const shown = applyFieldOverrides({
    data: series, fieldConfig, replaceVariables, theme, fieldConfigRegistry: registry, timeZone: "browser",
  });
  const displays = () => getFieldDisplayValues({
    fieldConfig, reduceOptions: options.reduceOptions, replaceVariables, theme, data: shown,
    sparkline: options.graphMode === "area", timeZone: "browser",
  });
  if (panel.type === "timeseries") {
    return <TimeSeries frames={shown} structureRev={1} timeRange={timeRange()} timeZone="browser" width={width}
      height={height} legend={options.legend} options={options} replaceVariables={replaceVariables} />;
  }
  if (panel.type === "table") {
    return <Table data={shown[0]} width={width} height={height} showTypeIcons={false} cellHeight={options.cellHeight}
      noHeader={!options.showHeader} initialSortBy={options.sortBy} timeRange={timeRange()} />;
  }
  const isStat = panel.type === "stat";
  const renderValue = ({ value: one, width, height, orientation, count, alignmentFactors }) => isStat
    ? <BigValue value={one.display} count={count} sparkline={one.sparkline} colorMode={options.colorMode}
        graphMode={options.graphMode} justifyMode={options.justifyMode} textMode={textMode(options, count)}
        text={options.text} alignmentFactors={alignmentFactors} width={width} height={height} theme={theme}
        disableWideLayout={!(options.wideLayout ?? true)} />
    : <BarGauge value={one.display} width={width} height={height} orientation={orientation} field={one.field}
        theme={theme} displayMode={options.displayMode} valueDisplayMode={options.valueMode} itemSpacing={8}
        showUnfilled={options.showUnfilled} text={options.text} display={one.view?.getFieldDisplayProcessor(one.colIndex)} />;
  return <VizRepeater getValues={displays} getAlignmentFactors={getDisplayValueAlignmentFactors} renderValue={renderValue} width={width} height={height} source={shown}
    autoGrid={isStat} itemSpacing={isStat ? 3 : 8} renderCounter={1} orientation={options.orientation} />;
}

const textMode = (options, count) => options.textMode !== "auto" ? options.textMode
  : count === 1 ? "value" : "value_and_name";

class Guard extends React.Component {
  state = {};
  static getDerivedStateFromError(error) { return { error }; }
  render() { return this.state.error ? <pre style={{ color: "red" }}>{String(this.state.error.stack)}</pre> : this.props.children; }
}

function Page({ panels, values }) {
  const column = (WIDTH - GAP) / 24;
  const bottom = Math.max(...panels.map(({ panel: { gridPos } }) => gridPos.y + gridPos.h));
  const chosen = Object.entries(values).map(([name, value]) => `${name}: ${value}`).join("   ");
  return <ThemeContext.Provider value={theme}><GlobalStyles />
    <h4 style={{ margin: 0, padding: "10px 12px", height: 40 }}>{dashboard.title} <small style={{ paddingLeft: 20 }}>{chosen}</small></h4>
    <div style={{ position: "relative", width: WIDTH, height: bottom * (CELL + GAP) + GAP }}>
      {panels.map(({ panel, series, error }) => {
        const { x, y, w, h } = panel.gridPos;
        const width = w * column - GAP, height = h * (CELL + GAP) - GAP;
        const at = { position: "absolute", left: GAP + x * column, top: y * (CELL + GAP), width, height };
        if (panel.type === "row") return <h5 key={panel.id} style={{ ...at, padding: "6px 2px" }}>⌄ {panel.title}</h5>;
        const empty = !error && series.every(({ length }) => length === 0);
        return <div key={panel.id} style={at}>
          <PanelChrome title={panel.title} description={panel.description || undefined} width={width} height={height}
            padding="md">
            {(w_, h_) => <Guard>{error || empty
              ? <div style={{ textAlign: "center", paddingTop: h_ / 2 - 10 }}>{error ?? panel.fieldConfig.defaults.noValue ?? "No data"}</div>
              : <PanelContextProvider value={{ eventsScope: "global", eventBus: BUS, sync: () => 0 }}>
                  <Content panel={panel} series={series} width={w_} height={h_} /></PanelContextProvider>}</Guard>}
          </PanelChrome></div>;
      })}
    </div></ThemeContext.Provider>;
}
const nothing = { unsubscribe() {} };
const BUS = {
  publish() {}, subscribe: () => nothing, removeAllListeners() {}, newScopedBus: () => BUS,
  getStream: () => ({ subscribe: () => nothing, pipe() { return this; } }),
};

const values = await variables();
const panels = await Promise.all(dashboard.panels.map(async (panel) => {
  if (panel.type === "row") return { panel };
  try {
    return { panel, series: await transformed(panel, await frames(panel, values, (panel.gridPos.w * WIDTH) / 24)) };
  } catch (error) { return { panel, error: String(error) }; }
}));
createRoot(document.getElementById("root")).render(<Page panels={panels} values={values} />);
