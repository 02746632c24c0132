{{- define "bftfs.selector" -}}
app.kubernetes.io/name: bftfs
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "bftfs.labels" -}}
{{ include "bftfs.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}
