# escape=`
FROM mcr.microsoft.com/windows/nanoserver:ltsc2022
SHELL ["powershell", "-Command", "$ErrorActionPreference = 'Stop';"]
ENV DIR=C:\app
WORKDIR $DIR\bin
RUN Write-Host one; `
    Write-Host C:\two\
COPY file.txt c:\
